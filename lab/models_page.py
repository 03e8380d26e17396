"""The table of all architectures, read off the registry, the name tables and the tests."""

from __future__ import annotations

import argparse
from pathlib import Path

from erase_sd.models.architectures import ARCHITECTURES, Architecture
from erase_sd.models.comfyui_names import COMFYUI
from lab.page import MEASURED, fill, table, write_page
from tests.models.test_transformers import CASES, Case

MODELS = {
    "sd": "Stable Diffusion 1.x, 2.x",
    "sdxl": "SDXL",
    "sd3": "SD 3, SD 3.5",
    "flux": "FLUX.1 with Kontext and Fill",
    "pixart": "PixArt-α, -Σ",
    "chroma": "Chroma",
    "ltx": "LTX-Video",
    "wan": "Wan 2.1; Wan 2.2, both networks",
    "lumina2": "Lumina 2",
    "sana": "SANA",
    "qwen-image": "Qwen-Image",
    "z-image": "Z-Image",
    "flux2-klein": "FLUX.2 klein",
    "flux2": "FLUX.2 dev",
}
PUBLISHED = "random weights of the published names and shapes, folder and single file"


def cases(model: Architecture) -> dict[str, Case]:
    """The tests' pipelines of an architecture, at reduced width."""
    return {label: case for label, case in CASES.items() if case.name == model.name}


def edited(model: Architecture) -> str:
    """Which matrices an edit goes to."""
    told = []
    for pattern in model.patterns.values():
        if pattern.startswith("attn2"):
            told.append("keys and values of every cross-attention")
        else:
            name = pattern.replace(r"(transformer_2\.)?", "").replace("\\", "").strip("^$")
            told.append(f"`{name.removesuffix('.weight')}`")
    return ", ".join(told)


def single(model: Architecture) -> str:
    """What can be done with one file of it."""
    if model.denoiser == "unet":
        return "yes"
    return "`apply`" if model.name in COMFYUI else "no"


def peft(model: Architecture) -> str:
    """Whether diffusers loads its LoRA."""
    found = cases(model).values()
    return "yes" if not found or any("peft" in case.lora for case in found) else "no loader"


def comfyui(model: Architecture) -> str:
    """The style of LoRA that ComfyUI reads."""
    if model.denoiser == "unet":
        return "`kohya`"
    return "`comfyui`" if model.name in COMFYUI else "no names"


def row(model: Architecture) -> list[str]:
    """One line of the table."""
    tested = f"diffusers' pipeline: {', '.join(cases(model))}" if cases(model) else PUBLISHED
    return [
        MODELS[model.name], f"`{model.name}`", edited(model), "yes", single(model), peft(model),
        comfyui(model), "yes", tested,
    ]  # fmt: skip


def page(command: str) -> str:
    """The page's text."""
    head = ["model", "name here", "what is edited", "folder", "single file", "LoRA, PEFT",
            "LoRA, ComfyUI", "run time", "tested against"]  # fmt: skip
    notes = [f"- `{m.name}`: {m.elsewhere}" for m in ARCHITECTURES if m.elsewhere]
    return fill(
        "models",
        command,
        table=table(head, [row(m) for m in ARCHITECTURES]),
        elsewhere="\n".join(notes),
    )


def main(argv: list[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m lab.models_page", description=__doc__)
    parser.add_argument("--out", type=Path, default=MEASURED)
    args = parser.parse_args(argv)
    print(f"wrote {write_page(args.out, 'models', page('python -m lab.models_page'))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
