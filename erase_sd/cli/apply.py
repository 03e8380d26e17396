"""`erase-concept apply`: bake an erasure file into a checkpoint."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.common import add_model, add_output, parser, quiet_libraries, report, run_of

EXAMPLES = """  erase-concept apply cat.safetensors --out cat-free
  erase-concept apply cat.safetensors --model sd15.safetensors --tokenizer ./clip --out
  sd15-no-cat.safetensors erase-concept apply cat.safetensors dog.safetensors --model ./sd15 --scale
  0.8 --out
  ./sd15-edited"""


def run(argv: list[str]) -> int:
    """Bake one or more erasures; their order does not matter."""
    p = parser("apply", "Bake erasure files into a copy of a checkpoint.", EXAMPLES)
    p.add_argument("erasure", nargs="+", type=Path, help="erasure files, or folders that hold one")
    add_model(p)
    add_output(p, "folder, or for a single file the file, to write", undo=True)
    p.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="what multiplies the change: 0 changes nothing, 1 as made (default)",
    )
    p.add_argument(
        "--allow-other-base", action="store_true", help="apply although the base weights differ"
    )
    args = p.parse_args(argv)
    quiet_libraries()
    from erase_sd.operations.applying import apply

    result = apply(
        args.erasure,
        args.model,
        out=args.out,
        scale=args.scale,
        allow_other_base=args.allow_other_base,
        run=run_of(args),
    )
    report(args, result)
    return 0
