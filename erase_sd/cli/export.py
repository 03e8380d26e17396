"""`erase-concept export`: an erasure as a LoRA that other tools load."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.common import add_model, add_output, parser, report, run_of

EXAMPLES = """  erase-concept export ./cat-free --out no-cat.safetensors
  erase-concept export cat.safetensors --style kohya --out no-cat.safetensors

peft is for diffusers (load_lora_weights), kohya for A1111, Forge and ComfyUI with SD 1, 2 and XL,
comfyui for ComfyUI with newer models. The LoRA's weight in the host is the scale of the erasure:
0 the original, 1 erased."""


def run(argv: list[str]) -> int:
    """Write a LoRA whose weight is the scale of the erasure."""
    p = parser("export", "Write an erasure as an exact LoRA for its base model.", EXAMPLES)
    p.add_argument("erasure", type=Path, help="erasure file, or a folder that holds one")
    add_model(p)
    p.add_argument(
        "--style",
        choices=("peft", "kohya", "comfyui"),
        default="peft",
        help="key names (default peft)",
    )
    p.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="dtype of the factors"
    )
    p.add_argument(
        "--allow-other-base",
        action="store_true",
        help="for a model with other weights, such as a fine-tune",
    )
    add_output(p, "file to write")
    args = p.parse_args(argv)
    from erase_sd.operations.exporting import export

    result = export(
        args.erasure,
        args.out,
        model=args.model,
        style=args.style,
        dtype=args.dtype,
        allow_other_base=args.allow_other_base,
        run=run_of(args),
    )
    report(args, result)
    return 0
