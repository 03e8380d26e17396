"""Random models of published shapes, on disk: tests and measurements without downloads.

Tensor names, shapes and order are those of the published checkpoints; the numbers are noise.
`small` keeps every name and shrinks the widths.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lab.original_names import openclip_shapes, unet_to_ldm, vae_shapes_to_ldm
from lab.published import KINDS, TOKENIZER, configs

__all__ = ["KINDS", "TOKENIZER", "configs", "write_folder", "write_single", "write_tensors"]

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def _build(component: str, config: dict[str, Any], *, projected: bool) -> Any:
    """A component on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        if component == "unet":
            return UNet2DConditionModel(**config)
        if component == "vae":
            return AutoencoderKL(**config)
        return (CLIPTextModelWithProjection if projected else CLIPTextModel)(
            CLIPTextConfig(**config)
        )


def _shapes(component: str, model: Any) -> dict[str, tuple[int, ...]]:
    """Names as published: transformers 5.6 and later dropped the text models' prefix."""
    found = {}
    for name, tensor in model.state_dict().items():
        if component.startswith("text") and not name.startswith(
            ("text_model.", "text_projection.")
        ):
            name = f"text_model.{name}"
        found[name] = tuple(tensor.shape)
    return found


def write_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], *, dtype: str = "F16", seed: int = 0
) -> None:
    """Write a safetensors file of noise, tensor by tensor, in little memory.

    Norm weights are ones, biases zeros, the rest normal with the deviation of a usual
    initialisation.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * _BYTES[dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for i, (name, shape) in enumerate(shapes.items()):
            f.write(_encode(_noise(name, shape, np.random.default_rng((seed, i))), dtype))


def _noise(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
    scale = 0.02 if "embedding" in name else 1 / np.sqrt(np.prod(shape[1:]))
    block = rng.standard_normal(min(int(np.prod(shape)), 1 << 20), dtype=np.float32) * np.float32(
        scale
    )
    return np.resize(block, shape)  # a repeated block: noise enough, and made at the disk's speed


def _encode(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def _components(kind: str, small: bool) -> Iterator[tuple[str, dict[str, Any], Any]]:
    for component, config in configs(kind, small=small).items():
        yield component, config, _build(component, config, projected=component == "text_encoder_2")


def write_folder(
    path: Path,
    kind: str,
    *,
    small: bool = False,
    dtype: str = "F16",
    variant: str = "",
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """A diffusers folder of a published shape.

    Args:
        path: Folder to create.
        kind: "sd1", "sd2" or "sdxl".
        small: Narrow widths.
        dtype: "F16", "F32" or "BF16".
        variant: Variant in the weights' names.
        shards: Files the U-Net is split into.
        seed: Of the noise.

    Returns:
        The folder.
    """
    path.mkdir(parents=True)
    middle = f".{variant}" if variant else ""
    for i, (component, _, model) in enumerate(_components(kind, small)):
        folder = path / component
        folder.mkdir()
        if component.startswith("text"):
            model.config.to_json_file(folder / "config.json")
        else:
            model.save_config(folder)
        shapes = _shapes(component, model)
        stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
        if component == "unet" and shards > 1:
            _write_shards(folder, f"{stem}", shapes, variant, shards, dtype, seed + 100)
        else:
            name = f"{stem}{middle}.safetensors"
            write_tensors(folder / name, shapes, dtype=dtype, seed=seed + i)
    _write_rest(path, kind)
    return path


def _write_shards(
    folder: Path,
    stem: str,
    shapes: dict[str, tuple[int, ...]],
    variant: str,
    shards: int,
    dtype: str,
    seed: int,
) -> None:
    """One component in several files, with the index that diffusers writes beside them."""
    names, middle = list(shapes), f".{variant}" if variant else ""
    where: dict[str, str] = {}
    for s in range(shards):
        own = names[s * len(names) // shards : (s + 1) * len(names) // shards]
        file = f"{stem}{middle}-{s + 1:05}-of-{shards:05}.safetensors"
        write_tensors(folder / file, {n: shapes[n] for n in own}, dtype=dtype, seed=seed + s)
        where |= dict.fromkeys(own, file)
    index = folder / f"{stem}.safetensors.index{middle}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _write_rest(path: Path, kind: str) -> None:
    """Tokenizers, scheduler and the index of a folder."""
    xl = kind == "sdxl"
    for suffix in ("", "_2") if xl else ("",):
        here = path / f"tokenizer{suffix}"
        shutil.copytree(TOKENIZER, here)
        if suffix or kind == "sd2":  # OpenCLIP's towers were trained with padding by id 0
            settings = json.loads((here / "tokenizer_config.json").read_text())
            padded = json.dumps(settings | {"pad_token": "!"})
            (here / "tokenizer_config.json").write_text(padded)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(_SCHEDULER))
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if xl:
        index |= {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        }
    else:
        index |= {
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
    (path / "model_index.json").write_text(json.dumps(index, indent=2))


_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_single(
    path: Path, kind: str, *, small: bool = False, dtype: str = "F16", seed: int = 0
) -> Path:
    """A single file of a published shape, in the original layout."""
    shapes: dict[str, tuple[int, ...]] = {}
    for component, config, model in _components(kind, small):
        own = _shapes(component, model)
        if component == "unet":
            blocks = len(config["block_out_channels"])
            shapes |= {"model.diffusion_model." + unet_to_ldm(n, blocks): s for n, s in own.items()}
        elif component == "vae":
            shapes |= {"first_stage_model." + n: s for n, s in vae_shapes_to_ldm(own).items()}
        elif component == "text_encoder" and kind != "sd2":
            prefix = (
                "conditioner.embedders.0.transformer."
                if kind == "sdxl"
                else "cond_stage_model.transformer."
            )
            shapes |= {prefix + n: s for n, s in own.items()}
        else:
            prefix = (
                "conditioner.embedders.1.model." if kind == "sdxl" else "cond_stage_model.model."
            )
            # Stable Diffusion 2 reads the last layer but one: its file has one layer more than is
            # used.
            shapes |= {prefix + n: s for n, s in openclip_shapes(own, spare=kind == "sd2").items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, shapes, dtype=dtype, seed=seed)
    return path
