"""`erase-concept erase`: the main job."""

from __future__ import annotations

import sys

from erase_sd.cli.common import (
    add_concept,
    add_model,
    add_output,
    parser,
    print_json,
    prompts_of,
    quiet_libraries,
    run_of,
    settings_of,
)

EXAMPLES = """  erase-concept erase --forget cat
  erase-concept erase --forget cat --forget kitten --retain dog --out cat-free
  erase-concept erase --model ./stable-diffusion-v1-4 --forget set:nudity --out ./sd14-safe
  erase-concept erase --model sdxl.safetensors --tokenizer ./clip --forget "Mickey Mouse"
  --keep-undo erase-concept erase --forget cat --robust --out cat-free-robust
  erase-concept erase --forget set:weapons --method uce --toward "a toy" --json

The result is what the model was, a plain diffusers folder or a single file, and with it
  erasure.safetensors   the edit alone, kilobytes: `apply`, `remove`, `export` and `verify` read it
  erasure.json          the same in words
  report.md, report.json, before_after.png   what was forgotten and what it cost"""


def run(argv: list[str]) -> int:
    """Erase and report."""
    p = parser("erase", "Take a concept out of a model and write the erased checkpoint.", EXAMPLES)
    add_model(p)
    add_concept(p)
    add_output(
        p,
        "folder or single file to write, as --model is (default: MODEL-without-CONCEPT)",
        required=False,
        undo=True,
    )
    p.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="images per subject before and after (default: 8 on emoji-sd, else none)",
    )
    p.add_argument(
        "--steps", type=int, default=20, help="denoising steps of those images (default 20)"
    )
    p.add_argument(
        "--device",
        default="cpu",
        help="where text is encoded and images are made: cpu, cuda, cuda:1, mps",
    )
    args = p.parse_args(argv)
    settings = settings_of(args)
    forget, retain = prompts_of(args)
    quiet_libraries()
    from erase_sd.operations.erasing import erase
    from erase_sd.operations.pictures import Pictures

    count = args.images if args.images is not None else None
    result = erase(
        args.model,
        forget,
        retain=retain,
        name=args.name,
        settings=settings,
        out=args.out,
        pictures=Pictures(count=count, steps=args.steps),
        run=run_of(args),
    )
    print("\n".join(result.lines()), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print_json(result.json())
    return 0
