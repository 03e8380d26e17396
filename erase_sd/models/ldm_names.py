"""The original (LDM, sgm) layout of single-file checkpoints: names of tensors.

A1111, ComfyUI and most published `.safetensors` files of Stable Diffusion 1, 2 and XL use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from erase_sd.models.architectures import Architecture, by_name

UNET = "model.diffusion_model."

EMA = "model_ema."  # training's running average of the same weights, in some published files

_PER_BLOCK = 3  # two layers and a down- or upsampler, in every published model


def is_averaged(name: str) -> bool:
    """Whether a tensor is part of an averaged copy.

    Its counters (`model_ema.decay`) hold no picture.
    """
    return name.startswith(EMA) and name not in (f"{EMA}decay", f"{EMA}num_updates")


def to_ldm(name: str) -> str:
    """A diffusers tensor or module name as LDM calls it (without `model.diffusion_model.`).

    Only what an edit touches: attention blocks and SDXL's added embedding.

    Raises:
        ValueError: If it is neither.
    """
    if name.startswith("add_embedding.linear_1"):
        return name.replace("add_embedding.linear_1", "label_emb.0.0")
    if m := re.match(r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.*)", name):
        return f"input_blocks.{1 + _PER_BLOCK * int(m[1]) + int(m[2])}.1.{m[3]}"
    if m := re.match(r"mid_block\.attentions\.0\.(.*)", name):
        return f"middle_block.1.{m[1]}"
    if m := re.match(r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.*)", name):
        return f"output_blocks.{_PER_BLOCK * int(m[1]) + int(m[2])}.1.{m[3]}"
    raise ValueError(f"{name} has no name in the single-file layout")


def from_ldm(name: str) -> str | None:
    """The diffusers name of an LDM tensor, or None for what no edit touches."""
    if not name.startswith(UNET):
        return None
    name = name.removeprefix(UNET)
    if name.startswith("label_emb.0.0."):
        return name.replace("label_emb.0.0", "add_embedding.linear_1")
    if m := re.match(r"input_blocks\.(\d+)\.1\.(transformer_blocks\..*)", name):
        block, layer = divmod(int(m[1]) - 1, _PER_BLOCK)
        return f"down_blocks.{block}.attentions.{layer}.{m[2]}"
    if m := re.match(r"middle_block\.1\.(transformer_blocks\..*)", name):
        return f"mid_block.attentions.0.{m[1]}"
    if m := re.match(r"output_blocks\.(\d+)\.1\.(transformer_blocks\..*)", name):
        block, layer = divmod(int(m[1]), _PER_BLOCK)
        return f"up_blocks.{block}.attentions.{layer}.{m[2]}"
    return None


# Where each published model keeps its text encoders, and in which of the two naming schemes.
TEXT_KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "sd1": (("cond_stage_model.transformer.", "clip"),),
    "sd2": (("cond_stage_model.model.", "openclip"),),
    "sdxl": (
        ("conditioner.embedders.0.transformer.", "clip"),
        ("conditioner.embedders.1.model.", "openclip"),
    ),
}


def layout(names: Iterable[str]) -> str:
    """Which published model a single file is: "sd1", "sd2" or "sdxl".

    Raises:
        ValueError: If it is none of them.
    """
    names = list(names)
    if not any(n.startswith(UNET) for n in names):
        if any("lora" in n for n in names):
            raise ValueError(
                "this is a LoRA, not a checkpoint; erase from the base model it belongs to"
            )
        raise ValueError(
            "not a single-file checkpoint of Stable Diffusion 1, 2 or XL, nor a transformer under "
            "the names that ComfyUI knows; take the model's diffusers folder"
        )
    for name in ("sdxl", "sd2", "sd1"):
        if all(any(n.startswith(prefix) for n in names) for prefix, _ in TEXT_KEYS[name]):
            return name
    raise ValueError(
        "this single file has no text encoder of Stable Diffusion 1, 2 or XL (base, not refiner)"
    )


def architecture_of(kind: str) -> Architecture:
    """The architecture behind a layout."""
    return by_name("sdxl" if kind == "sdxl" else "sd")
