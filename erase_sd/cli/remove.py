"""`erase-concept remove`: take concepts out of an erasure again."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.apply import erasure_path
from erase_sd.cli.common import parser, print_json

EXAMPLES = """  erase-concept remove both.safetensors --concept cat --out dog-only.safetensors"""


def run(argv: list[str]) -> int:
    """Write the erasure file less some concepts; those left are as if made alone."""
    p = parser("remove", "Take concepts out of an erasure file; the rest stays as if made alone.", EXAMPLES)
    p.add_argument("erasure", type=Path, help="erasure file, or a folder that holds one")
    p.add_argument("--concept", action="append", required=True, help="name to take out; repeatable")
    p.add_argument("--out", type=Path, required=True, help="erasure file to write")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--json", action="store_true", help="what was done, as JSON")
    args = p.parse_args(argv)
    from erase_sd.erasure import Erasure

    erasure = Erasure.load(erasure_path(args.erasure))
    for name in args.concept:
        erasure = erasure - name
    if not erasure.parts:
        raise ValueError("nothing would be left: the erasure has no other concept; use the base model instead")
    erasure.save(args.out, force=args.force)
    if args.json:
        print_json({"concepts": list(erasure.names), "out": str(args.out)})
    else:
        print(f"wrote {args.out}: {', '.join(erasure.names)}")
    return 0
