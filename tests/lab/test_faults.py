"""The fault harness, a few trials of everything; `make faults` runs hundreds."""

import subprocess
import sys
from pathlib import Path


def test_faults(tmp_path):
    """Killed, disk full, hostile inputs, several writers: nothing half-written, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.faults", "--trials", "1",
         "--work", str(tmp_path / "work"), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert ", 0 wrong." in (tmp_path / "faults.md").read_text()


def test_the_judge_of_faults_can_fail(tmp_path):
    """Half of a result, or a changed base, is seen."""
    from lab.fault_bench import judge

    class Base:
        whole = True

        def intact(self):
            return self.whole

    bench, target = Base(), tmp_path / "x"
    assert judge(bench, target, {"a": b"1"}, None) == "nothing"
    assert judge(bench, target, {"a": b"1"}, {"a": b"0"}) == "OLD LOST"
    target.mkdir()
    (target / "a").write_bytes(b"1")
    assert judge(bench, target, {"a": b"1"}, None) == "new"
    assert judge(bench, target, {"a": b"1", "b": b"2"}, None) == "HALF-WRITTEN"
    bench.whole = False
    assert judge(bench, target, {"a": b"1"}, None) == "BASE CHANGED"
