"""`erase-concept apply`: bake an erasure file into a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from erase_sd.cli.common import add_model, open_model, parser, print_json, quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """  erase-concept apply cat.safetensors --out cat-free
  erase-concept apply cat.safetensors --model sd15.safetensors --tokenizer ./clip --out sd15-no-cat.safetensors
  erase-concept apply cat.safetensors dog.safetensors --model ./sd15 --strength 0.8 --out ./sd15-edited"""


def run(argv: list[str]) -> int:
    """Bake one or more erasures; their order does not matter."""
    p = parser("apply", "Bake erasure files into a copy of a checkpoint.", EXAMPLES)
    p.add_argument("erasure", nargs="+", type=Path, help="erasure files, or folders that hold one")
    add_model(p)
    p.add_argument("--out", type=Path, required=True, help="folder, or for a single file the file, to write")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="times the strength it was made with: 0 changes nothing, 1 as made (default)",
    )
    p.add_argument("--allow-other-base", action="store_true", help="apply although the base weights differ")
    p.add_argument(
        "--keep-undo",
        action="store_true",
        help="also write OUT.undo.safetensors, for `remove`: keep it private, it holds the concept",
    )
    p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    p.add_argument("--json", action="store_true", help="what was done, as JSON")
    args = p.parse_args(argv)
    from erase_sd.erasure import Erasure, combine
    from erase_sd.files import check_apart, check_target

    quiet_libraries()
    erasure = combine([Erasure.load(erasure_path(e)) for e in args.erasure]).scaled(args.strength)
    model = open_model(args)
    check_apart(args.out, model.path)
    if not args.dry_run:
        check_target(args.out, force=args.force)
        check_room(args.out, model.size())
    weights = model.weights(kinds=erasure.kinds)
    changed = erasure.weights(weights, allow_other_base=args.allow_other_base)
    if args.allow_other_base:
        erasure = erasure.bound_to(weights)  # what is written verifies against this base
    else:
        erasure.check_text_encoder(model.encoder().fingerprint)
    if not args.dry_run:
        model.write(args.out, changed, erasure, force=args.force)
        if args.keep_undo:
            keep_undo(args.out, weights, force=args.force)
    about = {"concepts": list(erasure.names), "tensors": len(changed), "out": str(args.out)}
    if args.json:
        print_json(about)
    else:
        verb = "would write" if args.dry_run else "wrote"
        print(f"{verb} {args.out}: {len(changed)} matrices without {', '.join(erasure.names)}")
    return 0


def erasure_path(path: Path) -> Path:
    """An erasure file, or the one that belongs to an erased checkpoint."""
    from erase_sd.checkpoints import Checkpoint

    beside = Checkpoint.erasure_file(path)
    return beside if path.is_dir() or beside.is_file() else path


def check_room(out: Path, size: int) -> None:
    """Refuse before the work what would fill the disk after it."""
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OSError(f"{parent} has {free / 1e9:.1f} GB free, the checkpoint needs {size / 1e9:.1f} GB")


def keep_undo(out: Path, weights: Mapping[str, Tensor], *, force: bool) -> Path:
    """Store the original tensors beside an erased checkpoint, for `remove` to put back."""
    from safetensors.torch import save_file

    from erase_sd.checkpoints import undo_file
    from erase_sd.files import atomic_path

    path = undo_file(out)
    with atomic_path(path, force=force) as draft:
        save_file({k: v.contiguous() for k, v in weights.items()}, draft, metadata={"erase_sd": "undo"})
    return path
