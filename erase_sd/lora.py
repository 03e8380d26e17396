"""Exact LoRA exports under the key names that PEFT (diffusers) and kohya (A1111, ComfyUI) read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from erase_sd.erasure import Erasure
from erase_sd.files import atomic_path
from erase_sd.ldm import to_ldm
from erase_sd.sites import LORA_STYLES, TOKENS, by_name


def lora_tensors(
    erasure: Erasure, weights: Mapping[str, Tensor], *, style: str = "peft", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """LoRA tensors with `W + lora_B lora_A = W T` for each weight; one rank, alpha = rank.

    Args:
        erasure: What to export.
        weights: Base tensors by diffusers name, e.g. `down_blocks.0….attn2.to_k.weight`.
        style: "peft" or "kohya".
        dtype: dtype of the factors.

    Raises:
        ValueError: On an unknown style or another base.
    """
    if style not in LORA_STYLES:
        raise ValueError(f"expected a LoRA style of {', '.join(LORA_STYLES)}; got {style!r}")
    erasure.check_base(weights)
    architecture, edits, rank = by_name(erasure.architecture), erasure.edits, erasure.rank
    if architecture.denoiser != "unet" and style == "kohya":
        raise ValueError(f"kohya has no common key names for {architecture.name}; export --style peft")
    tensors: dict[str, Tensor] = {}
    for name in erasure.sites(weights):
        down, up = edits[architecture.stream(name) or TOKENS].lora(weights[name])
        # One rank a file: readers take the first module's for all of them.
        spare = rank - len(down)
        down = F.pad(down, (0, 0, 0, spare)).to(dtype).contiguous()
        up = F.pad(up, (0, spare)).to(dtype).contiguous()
        module = name.removesuffix(".weight")
        if style == "peft":
            tensors[f"{architecture.denoiser}.{module}.lora_A.weight"] = down
            tensors[f"{architecture.denoiser}.{module}.lora_B.weight"] = up
        else:
            # kohya trains SD 1 and 2 under diffusers' names, SDXL under those of the original code.
            module = to_ldm(module) if architecture.name == "sdxl" else module
            key = "lora_unet_" + module.replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=dtype)
    # Each tensor owns its memory: the down factor is the same for every site.
    return {k: v.clone() for k, v in tensors.items()}


def save_lora(
    erasure: Erasure,
    weights: Mapping[str, Tensor],
    path: str | Path,
    *,
    style: str = "peft",
    dtype: torch.dtype = torch.float32,
    force: bool = False,
) -> Path:
    """Write a LoRA file atomically."""
    from safetensors.torch import save_file

    path = Path(path)
    tensors = lora_tensors(erasure, weights, style=style, dtype=dtype)
    metadata = {"format": "pt", "erase_sd": json.dumps(erasure.describe(), ensure_ascii=False)}
    if style == "kohya":
        rank = str(erasure.rank)
        metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    with atomic_path(path, force=force) as draft:
        save_file(tensors, draft, metadata=metadata)
    return path
