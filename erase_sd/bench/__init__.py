"""Measurements at real size: `python -m erase_sd.bench` and `python -m erase_sd.bench.faults`."""
