"""Exact LoRA exports under the key names that diffusers, web UIs and ComfyUI read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from erase_sd.artifact.base import check_base
from erase_sd.artifact.erasure import Erasure
from erase_sd.models.architectures import SECOND, Architecture
from erase_sd.models.comfyui_names import COMFYUI
from erase_sd.models.files import atomic_paths
from erase_sd.models.ldm_names import to_ldm
from erase_sd.models.tensor_files import dump_tensors

LoraStyle = Literal["peft", "kohya", "comfyui"]
LORA_STYLES: tuple[LoraStyle, ...] = ("peft", "kohya", "comfyui")


def lora_tensors(
    erasure: Erasure,
    weights: Mapping[str, Tensor],
    *,
    style: LoraStyle = "peft",
    dtype: torch.dtype = torch.float32,
    second: bool = False,
) -> dict[str, Tensor]:
    """LoRA tensors with `W + up down` the edited weight for each `W`; one rank, alpha = rank.

    Args:
        erasure: What to export.
        weights: Base tensors by diffusers name, e.g. `down_blocks.0….attn2.to_k.weight`; not
            checked.
        style: Key names: "peft" for diffusers, "kohya" for web UIs and ComfyUI with a U-Net,
            "comfyui" for ComfyUI with a transformer.
        dtype: dtype of the factors.
        second: Those of the second of two networks; hosts load one file into each.

    Raises:
        ValueError: On an unknown style, or one that has no names for this architecture.
    """
    factors = {
        site.module.removeprefix(SECOND): erasure.edit_of(site).factors(weights[site.name])
        for site in erasure.editable(weights)
        if site.second == second
    }
    return keyed(factors, erasure.model, style=style, dtype=dtype)


def keyed(
    factors: Mapping[str, tuple[Tensor, Tensor]],
    model: Architecture,
    *,
    style: LoraStyle = "peft",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Factors under the key names that hosts read; one rank, alpha = rank.

    Args:
        factors: `(down (r, d_in), up (d_out, r))` by module of the denoiser.
        model: What they are for.
        style: Key names, see `lora_tensors`.
        dtype: dtype of the factors.

    Raises:
        ValueError: On an unknown style, one that has no names for this architecture, or factors
            that are not finite.
    """
    _check_style(model, style)
    rank = max((len(down) for down, _ in factors.values()), default=0)
    tensors: dict[str, Tensor] = {}
    for module, (down, up) in factors.items():
        # One rank a file: readers take the first module's for all of them.
        spare = rank - len(down)
        down = F.pad(down, (0, 0, 0, spare)).to(dtype).contiguous()
        up = F.pad(up, (0, spare)).to(dtype).contiguous()
        if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
            raise ValueError(
                f"the factors of {module}.weight are not finite in {dtype}; export float32"
            )
        if style == "kohya":
            # kohya trains SD 1 and 2 under diffusers' names, SDXL under those of the original code.
            named = to_ldm(module) if model.name == "sdxl" else module
            key = "lora_unet_" + named.replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=dtype)
        else:
            comfyui = style == "comfyui"
            named = COMFYUI[model.name][module] if comfyui else module
            key = f"{'diffusion_model' if comfyui else model.denoiser}.{named}"
            tensors[f"{key}.lora_A.weight"] = down
            tensors[f"{key}.lora_B.weight"] = up
    # Each tensor owns its memory: the down factor may be the same for every site.
    return {k: v.clone() for k, v in tensors.items()}


def _check_style(model: Architecture, style: str) -> None:
    if style not in LORA_STYLES:
        raise ValueError(f"expected a LoRA style of {', '.join(LORA_STYLES)}; got {style!r}")
    unet, comfyui = model.denoiser == "unet", model.name in COMFYUI
    if style == "kohya" and not unet:
        instead = "comfyui or peft" if comfyui else "peft"
        raise ValueError(
            f"kohya has no common key names for {model.name}; export --style {instead}"
        )
    if style == "comfyui" and not comfyui:
        instead = "kohya" if unet else "peft"
        raise ValueError(
            f"ComfyUI has no names of its own for {model.name}; export --style {instead}"
        )


def save_lora(
    erasure: Erasure,
    weights: Mapping[str, Tensor],
    path: str | Path,
    *,
    style: LoraStyle = "peft",
    dtype: torch.dtype = torch.float32,
    force: bool = False,
    allow_other_base: bool = False,
) -> Path:
    """Write a LoRA file atomically; its weight in a host is the scale of the erasure.

    For a model that draws with two networks, a file for each, see `second_file`.

    Args:
        erasure: What to export.
        weights: The base tensors it was made for.
        path: File to write.
        style: Key names, see `lora_tensors`.
        dtype: dtype of the factors.
        force: Whether an existing file may be replaced.
        allow_other_base: Make it for these weights although they are others, such as a fine-tune's.

    Raises:
        WrongBase: If the weights are not those it was made for.
        FileExistsError: If the file exists and `force` is off.
    """
    if not allow_other_base:
        check_base(erasure.base, weights)
    path = Path(path)
    metadata = {"format": "pt", "erase_sd": json.dumps(erasure.describe(), ensure_ascii=False)}
    if style == "kohya":
        metadata |= kohya_metadata(
            erasure.architecture, erasure.edit.width, erasure.rank, erasure.names
        )
    both = any(site.second for site in erasure.editable(weights))
    with atomic_paths([path, *([second_file(path)] if both else [])], force=force) as drafts:
        for draft, second in zip(drafts, (False, True), strict=False):
            made = lora_tensors(erasure, weights, style=style, dtype=dtype, second=second)
            draft.write_bytes(dump_tensors(made, metadata))
    return path


def second_file(path: Path) -> Path:
    """Where the LoRA of a model's second network lies.

    >>> second_file(Path("no-cat.safetensors")).name
    'no-cat.transformer_2.safetensors'
    """
    return path.with_name(f"{path.stem}.{SECOND}{path.suffix.removeprefix('.')}")


def kohya_metadata(
    architecture: str, width: int, rank: int, names: Sequence[str]
) -> dict[str, str]:
    """What A1111, Forge and ComfyUI read to tell which models a LoRA is for.

    Args:
        architecture: Short name of the architecture.
        width: Of the text states that its cross-attention reads.
        rank: Of the LoRA.
        names: What it takes out.
    """
    if architecture == "sdxl":
        base, spec = "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"
    elif width == 1024:  # OpenCLIP's, which Stable Diffusion 2 reads
        base, spec = "sd_v2", "stable-diffusion-v2-512/lora"
    else:
        base, spec = "sd_v1", "stable-diffusion-v1/lora"
    return {
        "modelspec.architecture": spec,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"without {', '.join(names)}"[:200],
        "ss_base_model_version": base,
        "ss_network_alpha": str(rank),
        "ss_network_dim": str(rank),
        "ss_network_module": "networks.lora",
        "ss_v2": str(base == "sd_v2"),
    }
