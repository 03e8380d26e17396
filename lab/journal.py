"""What was measured, line by line, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    r"""Values by key in a file of JSON lines.

    A line that an interruption cut is dropped, and its value is measured again.

    Args:
        path: The file; its folder is made.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
    >>> Journal(path).put("a", {"n": 1})
    {'n': 1}
    >>> Journal(path).get("a")
    {'n': 1}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rpartition(b"\n")[0] + b"\n" if b"\n" in data else b""
        if len(whole) < len(data):  # the next line must not be glued to half of one
            with path.open("r+b") as f:
                f.truncate(len(whole))
        for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
            try:
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                told = f"expected a JSON line with key and value, got {line[:60]!r}"
                raise ValueError(f"{path}, line {number}: {told}") from error

    def __contains__(self, key: str) -> bool:
        """Whether a value is there; None may be one."""
        return key in self._values

    def get(self, key: str) -> Any:
        """The value of a key; None if there is none yet."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> Any:
        """Keep a JSON-ready value under a key, on disk before it is returned.

        Raises:
            TypeError: If it is not JSON-ready; nothing is written then.
        """
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n"
        with self.path.open("ab") as f:
            f.write(line.encode("utf-8"))
            f.flush()
            os.fsync(f.fileno())
        self._values[key] = json.loads(line)["value"]
        return self._values[key]
