"""What people do with a model: erase, apply, restore, verify, export, look before.

Each is a function that returns a frozen result; a result says itself in lines for people and in
JSON for programs. The command line and the demo only word them.
"""

from __future__ import annotations

from erase_sd._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "apply": "erase_sd.operations.applying",
        "erase": "erase_sd.operations.erasing",
        "export": "erase_sd.operations.exporting",
        "preflight": "erase_sd.operations.looking",
        "restore": "erase_sd.operations.restoring",
        "subtract": "erase_sd.operations.restoring",
        "verify": "erase_sd.operations.verifying",
    },
)
