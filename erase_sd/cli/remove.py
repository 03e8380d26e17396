"""`erase-concept remove`: take concepts out of an erasure again.

Or an erasure out of a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.common import add_output, parser, report

EXAMPLES = """  erase-concept remove both.safetensors --concept cat --out dog-only.safetensors
  erase-concept remove ./cat-free --out restored

The second gives back the original, bit for bit, from cat-free.undo.safetensors (made by
--keep-undo)."""


def run(argv: list[str]) -> int:
    """Write the erasure file less some concepts, or the checkpoint with its original tensors."""
    p = parser(
        "remove",
        "Take concepts out of an erasure file (the rest stays as if made alone), or restore an "
        "erased checkpoint.",
        EXAMPLES,
    )
    p.add_argument("path", type=Path, help="erasure file, or an erased checkpoint")
    p.add_argument(
        "--concept", action="append", help="name to take out of the erasure file; repeatable"
    )
    p.add_argument(
        "--undo",
        type=Path,
        help="original tensors of the checkpoint (default: PATH.undo.safetensors)",
    )
    p.add_argument("--variant", default="", help="weights variant of the checkpoint")
    add_output(p, "erasure file, or restored checkpoint, to write")
    args = p.parse_args(argv)
    from erase_sd.operations.common import Run, Source
    from erase_sd.operations.restoring import restore, subtract

    if args.concept:
        report(args, subtract(args.path, args.concept, args.out, force=args.force))
    else:
        run_ = Run(source=Source(variant=args.variant), force=args.force)
        report(args, restore(args.path, args.out, undo=args.undo, run=run_))
    return 0
