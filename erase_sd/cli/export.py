"""`erase-concept export`: an erasure as a LoRA that other tools load."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.apply import erasure_path
from erase_sd.cli.common import add_model, open_model, parser, print_json
from erase_sd.sites import LORA_STYLES

EXAMPLES = """  erase-concept export cat.safetensors --style kohya --out no-cat.safetensors     A1111, ComfyUI
  erase-concept export ./cat-free --style peft --out no-cat.safetensors          diffusers: load_lora_weights"""


def run(argv: list[str]) -> int:
    """Write a LoRA whose scale is the strength of the erasure: 0 the original, 1 erased."""
    p = parser("export", "Write an erasure as an exact LoRA for its base model.", EXAMPLES)
    p.add_argument("erasure", type=Path, help="erasure file, or a folder that holds one")
    add_model(p)
    p.add_argument("--style", choices=LORA_STYLES, default="peft", help="key names (default peft)")
    p.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="dtype of the factors")
    p.add_argument("--out", type=Path, required=True, help="file to write")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--json", action="store_true", help="what was done, as JSON")
    args = p.parse_args(argv)
    import torch

    from erase_sd.erasure import Erasure
    from erase_sd.lora import save_lora

    erasure = Erasure.load(erasure_path(args.erasure))
    weights = open_model(args).weights(kinds=erasure.kinds)
    save_lora(erasure, weights, args.out, style=args.style, dtype=getattr(torch, args.dtype), force=args.force)
    size = args.out.stat().st_size
    if args.json:
        print_json({"out": str(args.out), "bytes": size, "rank": erasure.rank, "style": args.style})
    else:
        print(f"wrote {args.out}: {args.style} LoRA, rank {erasure.rank}, {size / 1000:.0f} kB")
    return 0
