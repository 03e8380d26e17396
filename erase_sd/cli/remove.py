"""`erase-concept remove`: take concepts out of an erasure again, or an erasure out of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erase_sd.cli.apply import check_room, erasure_path
from erase_sd.cli.common import parser, print_json

EXAMPLES = """  erase-concept remove both.safetensors --concept cat --out dog-only.safetensors
  erase-concept remove ./cat-free --out restored          the original, from cat-free.undo.safetensors (--keep-undo)"""


def run(argv: list[str]) -> int:
    """Write the erasure file less some concepts, or the checkpoint with its original tensors."""
    p = parser(
        "remove",
        "Take concepts out of an erasure file (the rest stays as if made alone), or restore an erased checkpoint.",
        EXAMPLES,
    )
    p.add_argument("path", type=Path, help="erasure file, or an erased checkpoint")
    p.add_argument("--concept", action="append", help="name to take out of the erasure file; repeatable")
    p.add_argument("--undo", type=Path, help="original tensors of the checkpoint (default: PATH.undo.safetensors)")
    p.add_argument("--variant", default="", help="weights variant of the checkpoint")
    p.add_argument("--out", type=Path, required=True, help="erasure file, or restored checkpoint, to write")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--json", action="store_true", help="what was done, as JSON")
    args = p.parse_args(argv)
    about = _subtract(args) if args.concept else _restore(args)
    if args.json:
        print_json(about | {"out": str(args.out)})
    else:
        print(f"wrote {args.out}: " + (", ".join(about["concepts"]) or "the original, bit for bit"))
    return 0


def _subtract(args: Any) -> dict[str, Any]:
    from erase_sd.erasure import Erasure

    erasure = Erasure.load(erasure_path(args.path))
    for name in args.concept:
        erasure = erasure - name
    if not erasure.parts:
        raise ValueError("nothing would be left: the erasure has no other concept; use the base model instead")
    erasure.save(args.out, force=args.force)
    return {"concepts": list(erasure.names)}


def _restore(args: Any) -> dict[str, Any]:
    from erase_sd.checkpoints import Checkpoint, open_checkpoint, undo_file
    from erase_sd.erasure import Erasure
    from erase_sd.files import check_apart, check_target, read_tensors, tensor_names

    own = Checkpoint.erasure_file(args.path)
    if not own.is_file():
        raise ValueError(f"{args.path} is no erased checkpoint; to take a concept out of an erasure file add --concept")
    undo = args.undo or undo_file(args.path)
    if not undo.is_file():
        raise ValueError(f"no {undo}: the originals are kept only on request (--keep-undo); use the base model")
    model = open_checkpoint(args.path, variant=args.variant)
    check_apart(args.out, model.path)
    check_target(args.out, force=args.force)
    check_room(args.out, model.size())
    originals = read_tensors(undo, tensor_names(undo))
    # The hashes of the base are in the erasure: what comes back is what was there, or nothing does.
    Erasure.load(own).check_base(originals)
    model.write(args.out, originals, None, force=args.force)
    return {"concepts": [], "restored": len(originals)}
