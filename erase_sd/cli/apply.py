"""`erase-concept apply`: bake an erasure file into a checkpoint."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.common import add_model, model_path, parser, print_json, quiet_libraries

EXAMPLES = """  erase-concept apply cat.safetensors --out cat-free
  erase-concept apply cat.safetensors dog.safetensors --model ./sd15 --strength 0.8 --out ./sd15-edited"""


def run(argv: list[str]) -> int:
    """Bake one or more erasures; their order does not matter."""
    p = parser("apply", "Bake erasure files into a copy of a checkpoint.", EXAMPLES)
    p.add_argument("erasure", nargs="+", type=Path, help="erasure files, or folders that hold one")
    add_model(p)
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--strength", type=float, default=1.0, help="0 changes nothing, 1 as made (default)")
    p.add_argument("--allow-other-base", action="store_true", help="apply although the base weights differ")
    p.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    p.add_argument("--json", action="store_true", help="what was done, as JSON")
    args = p.parse_args(argv)
    from erase_sd.checkpoints import ERASURE, DiffusersFolder, atomic_path, check_apart, check_target
    from erase_sd.erasure import Erasure, combine
    from erase_sd.text import TextEncoder

    check_apart(args.out, model_path(args.model))
    if not args.dry_run:
        check_target(args.out, force=args.force)
    quiet_libraries()
    erasure = combine([Erasure.load(erasure_path(e)) for e in args.erasure]).scaled(args.strength)
    folder = DiffusersFolder.open(model_path(args.model), variant=args.variant)
    weights = folder.weights(kinds=erasure.kinds)
    changed = erasure.weights(weights, allow_other_base=args.allow_other_base)
    if args.allow_other_base:
        erasure = erasure.bound_to(weights)  # what is written verifies against this base
    else:
        erasure.check_text_encoder(TextEncoder.from_folder(folder.path, variant=args.variant).fingerprint)
    if not args.dry_run:
        with atomic_path(args.out, force=args.force) as draft:
            folder.write_copy(draft, changed, erasure.describe())
            erasure.save(draft / ERASURE)
    about = {"concepts": list(erasure.names), "tensors": len(changed), "out": str(args.out)}
    if args.json:
        print_json(about)
    else:
        verb = "would write" if args.dry_run else "wrote"
        print(f"{verb} {args.out}: {len(changed)} matrices without {', '.join(erasure.names)}")
    return 0


def erasure_path(path: Path) -> Path:
    """An erasure file, or the one inside an erased checkpoint."""
    from erase_sd.checkpoints import ERASURE

    return path / ERASURE if path.is_dir() else path
