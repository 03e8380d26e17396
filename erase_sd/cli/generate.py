"""`erase-concept generate`: images, with or without an erasure."""

from __future__ import annotations

import argparse
from pathlib import Path

from erase_sd.cli.common import add_model, open_model, parser, print_json, quiet_libraries

EXAMPLES = """  erase-concept generate --prompt "a cat and a dog" --out pair.png
  erase-concept generate --prompt "a cat" --erasure cat.safetensors --scale 0.5 --count 9 --out
  half.png"""


def _parser() -> argparse.ArgumentParser:
    p = parser("generate", "Make images from a model, with or without an erasure.", EXAMPLES)
    add_model(p)
    p.add_argument("--prompt", action="append", required=True, help="what to draw; repeatable")
    p.add_argument(
        "--erasure", type=Path, help="erasure file, or folder that holds one, to apply first"
    )
    p.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="what multiplies the change: 0 changes nothing, 1 as made (default)",
    )
    p.add_argument("--count", type=int, default=1, help="images per prompt (seeds count up)")
    p.add_argument("--seed", type=int, default=0, help="first seed")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument(
        "--guidance", type=float, help="guidance scale (default: what is usual for the model)"
    )
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", type=Path, required=True, help="PNG to write")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--json", action="store_true", help="what was made, as JSON")
    return p


def run(argv: list[str]) -> int:
    """Write one picture: a grid if there are several images."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    from erase_sd.eval.drawing import Request, picture, write_picture
    from erase_sd.models.embedded import usual
    from erase_sd.models.files import check_apart, check_target
    from erase_sd.operations.common import load_erasure
    from erase_sd.pipelines.loading import load_pipeline

    check_target(args.out, force=args.force)
    model = open_model(args)
    check_apart(args.out, model.path, args.erasure)
    guidance = usual(model.path).guidance if args.guidance is None else args.guidance
    request = Request(tuple(args.prompt), args.count, args.seed, args.steps, guidance)
    erasure = load_erasure(args.erasure) if args.erasure else None
    pipe = load_pipeline(model, variant=args.variant, device=args.device)
    image = picture(pipe, request, erasure=erasure, scale=args.scale)
    write_picture(image, args.out, force=args.force)
    if args.json:
        print_json({"out": str(args.out), "prompts": args.prompt, "seeds": request.seeds})
    else:
        print(f"wrote {args.out}")
    return 0
