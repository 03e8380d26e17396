"""`erase-concept generate`: images, with or without an erasure."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.apply import erasure_path
from erase_sd.cli.common import add_model, open_model, parser, print_json, quiet_libraries
from erase_sd.pipelines.loading import is_embedded, load_pipeline

EXAMPLES = """  erase-concept generate --prompt "a cat and a dog" --out pair.png
  erase-concept generate --prompt "a cat" --erasure cat.safetensors --strength 0.5 --count 9 --out half.png"""


def run(argv: list[str]) -> int:
    """Write one picture: a grid if there are several images."""
    p = parser("generate", "Make images from a model, with or without an erasure.", EXAMPLES)
    add_model(p)
    p.add_argument("--prompt", action="append", required=True, help="what to draw; repeatable")
    p.add_argument("--erasure", type=Path, help="erasure file to apply first")
    p.add_argument(
        "--strength", type=float, default=1.0, help="times the strength the erasure was made with (default 1)"
    )
    p.add_argument("--count", type=int, default=1, help="images per prompt (seeds count up)")
    p.add_argument("--seed", type=int, default=0, help="first seed")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--guidance", type=float, help="guidance scale (default: 3 for the embedded model, else 7.5)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", type=Path, required=True, help="PNG to write")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--json", action="store_true", help="what was made, as JSON")
    args = p.parse_args(argv)
    if args.count < 1 or args.steps < 1:
        raise ValueError("expected --count and --steps of at least 1")
    from erase_sd.models.files import atomic_path, check_target

    check_target(args.out, force=args.force)
    quiet_libraries()
    from erase_sd.artifact.erasure import Erasure
    from erase_sd.eval.sheet import image_grid
    from erase_sd.pipelines.live import apply
    from erase_sd.pipelines.sampling import generate

    model = open_model(args)
    guidance = args.guidance if args.guidance is not None else (3.0 if is_embedded(model.path) else 7.5)
    pipe = load_pipeline(model, variant=args.variant, device=args.device)
    if args.erasure:
        apply(pipe, Erasure.load(erasure_path(args.erasure)).scaled(args.strength))
    prompts = [q for q in args.prompt for _ in range(args.count)]
    seeds = [args.seed + i for _ in args.prompt for i in range(args.count)]
    images = generate(pipe, prompts, seeds, steps=args.steps, guidance=guidance, progress="images")
    picture = images[0] if len(images) == 1 else image_grid(images, min(args.count, 8) if args.count > 1 else 8,
                                                              cell=images[0].width)  # fmt: skip
    with atomic_path(args.out, force=args.force) as draft:
        picture.save(draft, format="PNG")
    if args.json:
        print_json({"out": str(args.out), "prompts": args.prompt, "seeds": seeds[: args.count]})
    else:
        print(f"wrote {args.out}")
    return 0
