"""`erase-concept doctor`: what interrupted commands left behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erase_sd.cli.common import parser, print_json
from erase_sd.models.leftovers import Leftover, leftovers

EXAMPLES = """  erase-concept doctor
  erase-concept doctor ./models ./results
  erase-concept doctor ./models --remove

A command that is killed can leave a hidden folder `.erase-sd-....part` where it wrote; the next one
that writes there removes it. This looks for them, in the working folder and the folder of
temporary files unless told where, and in all folders inside. What a running command still works
with is shown and left alone. A result that was just being put in place (`.commit`) is finished.
Exit code 1 if something was left behind, or could not be removed."""


def run(argv: list[str]) -> int:
    """Exit 0 if nothing lies around, 1 if something does."""
    p = parser("doctor", "What interrupted commands left behind; remove it.", EXAMPLES)
    p.add_argument("place", nargs="*", type=Path, help="folders to look in")
    p.add_argument(
        "--remove", action="store_true", help="remove what no running command works with"
    )
    p.add_argument("--json", action="store_true", help="as JSON")
    args = p.parse_args(argv)
    for place in args.place:
        if not place.is_dir():
            raise ValueError(f"no such folder: {place}")
    found = _found(args.place)
    gone = [args.remove and not one.in_use and one.remove() for one in found]
    rows = [_row(one, removed) for one, removed in zip(found, gone, strict=True)]
    left = [r for r in rows if r["state"] == "left behind"]
    if args.json:
        print_json({"found": rows, "left": len(left)})
    else:
        for row in rows:
            print(f"{row['state']:<12}{row['bytes'] / 1e6:>9.1f} MB  {row['path']}")
        print(
            f"{len(left)} left behind" + ("; --remove removes" if left and not args.remove else "")
        )
    return 1 if left else 0


def _found(places: Sequence[Path]) -> list[Leftover]:
    """In some folders and all inside; of the usual ones, the temporary one's without its inside."""
    if not places:
        return [*_below(Path()), *leftovers(Path(tempfile.gettempdir()))]
    return [one for place in places for one in _below(place)]


def _below(place: Path) -> list[Leftover]:
    found = []
    for folder, inside, _ in os.walk(place):
        here = list(leftovers(Path(folder)))
        found += here
        names = {one.path.name for one in here}
        inside[:] = [name for name in inside if name not in names]
    return found


def _row(one: Leftover, removed: bool) -> dict[str, Any]:
    state = "removed" if removed else "in use" if one.in_use else "left behind"
    return {"path": str(one.path), "bytes": one.bytes, "state": state, "decided": one.decided}
