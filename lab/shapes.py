"""Randomly initialised models of published shapes, on disk: for tests and measurements without downloads.

Tensor names, shapes and order are those of the published checkpoints; the numbers are noise. `small`
keeps every name and shrinks the widths.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from erase_sd.emoji.models import EMOJI_SD

TOKENIZER = EMOJI_SD / "tokenizer"  # of small models, and a stand-in for CLIP's own in full-size ones
KINDS = ("sd1", "sd2", "sdxl")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ATTENTION = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")


def _clip(width: int, layers: int, *, small: int, act: str, projection: int = 0) -> dict[str, Any]:
    width, layers = (small, 2) if small else (width, layers)
    vocab = len(json.loads((TOKENIZER / "vocab.json").read_text())) if small else 49408
    return dict(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        vocab_size=vocab, max_position_embeddings=77, hidden_act=act,
        projection_dim=(width if small else projection) or width,
        bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1,
    )  # fmt: skip


def configs(kind: str, *, small: bool = False) -> dict[str, dict[str, Any]]:
    """Configurations of a published model's U-Net, autoencoder and text encoders, by component."""
    cross, down, up, last = _ATTENTION[0], _ATTENTION[1], _ATTENTION[2], _ATTENTION[3]
    if kind == "sdxl":
        text = {
            "text_encoder": _clip(768, 12, small=64 * small, act="quick_gelu"),
            "text_encoder_2": _clip(1280, 32, small=128 * small, act="gelu", projection=1280),
        }
        width, pooled = (192, 128) if small else (2048, 1280)
        unet = dict(
            block_out_channels=(32, 64, 64) if small else (320, 640, 1280),
            down_block_types=(down, cross, cross),
            up_block_types=(up, up, last),
            transformer_layers_per_block=(1, 1, 2) if small else (1, 2, 10),
            attention_head_dim=(2, 2, 2) if small else (5, 10, 20),
            cross_attention_dim=width,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=pooled + 6 * 256,
            sample_size=16 if small else 128,
        )
    else:
        two = kind == "sd2"
        size, act = ((1024, 23), "gelu") if two else ((768, 12), "quick_gelu")
        text = {"text_encoder": _clip(*size, small=128 * small, act=act)}
        width = 128 if small else 1024 if two else 768
        unet = dict(
            block_out_channels=(32, 64, 64, 64) if small else (320, 640, 1280, 1280),
            down_block_types=(cross, cross, cross, down),
            up_block_types=(last, up, up, up),
            attention_head_dim=2 if small else (5, 10, 20, 20) if two else 8,
            cross_attention_dim=width,
            use_linear_projection=two,
            sample_size=16 if small else 96 if two else 64,
        )
    unet |= dict(in_channels=4, out_channels=4, layers_per_block=2)
    vae = dict(
        block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=128 if small else 512,
    )
    return {"unet": unet, "vae": vae, **text}


def _build(component: str, config: dict[str, Any], *, projected: bool) -> Any:
    """A component on the meta device: names and shapes, no numbers."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        if component == "unet":
            return UNet2DConditionModel(**config)
        if component == "vae":
            return AutoencoderKL(**config)
        return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))


def _shapes(component: str, model: Any) -> dict[str, tuple[int, ...]]:
    """Names as published: transformers 5.6 and later dropped the text models' prefix."""
    found = {}
    for name, tensor in model.state_dict().items():
        if component.startswith("text") and not name.startswith(("text_model.", "text_projection.")):
            name = f"text_model.{name}"
        found[name] = tuple(tensor.shape)
    return found


def write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], *, dtype: str = "F16", seed: int = 0) -> None:
    """Write a safetensors file of noise, tensor by tensor, in little memory.

    Norm weights are ones, biases zeros, the rest normal with the deviation of a usual initialisation.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
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
    block = rng.standard_normal(min(int(np.prod(shape)), 1 << 20), dtype=np.float32) * np.float32(scale)
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
    """
    path.mkdir(parents=True)
    middle = f".{variant}" if variant else ""
    for i, (component, _, model) in enumerate(_components(kind, small)):
        folder = path / component
        folder.mkdir()
        (model.config.to_json_file if hasattr(model.config, "to_json_file") else model.save_config)(
            folder / "config.json" if hasattr(model.config, "to_json_file") else folder
        )
        shapes = _shapes(component, model)
        stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
        if component != "unet" or shards == 1:
            write_tensors(folder / f"{stem}{middle}.safetensors", shapes, dtype=dtype, seed=seed + i)
            continue
        names = list(shapes)
        where: dict[str, str] = {}
        for s in range(shards):
            own = names[s * len(names) // shards : (s + 1) * len(names) // shards]
            file = f"{stem}{middle}-{s + 1:05}-of-{shards:05}.safetensors"
            write_tensors(folder / file, {n: shapes[n] for n in own}, dtype=dtype, seed=seed + 100 + s)
            where |= dict.fromkeys(own, file)
        file = f"{stem}.safetensors.index{'.' + variant if variant else ''}.json"
        (folder / file).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    xl = kind == "sdxl"
    for suffix in ("", "_2") if xl else ("",):
        here = path / f"tokenizer{suffix}"
        shutil.copytree(TOKENIZER, here)
        if suffix or kind == "sd2":  # OpenCLIP's towers were trained with padding by id 0
            settings = json.loads((here / "tokenizer_config.json").read_text())
            (here / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "!"}))
    (path / "scheduler").mkdir()
    scheduler = dict(_class_name="DDIMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                     clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if xl:
        index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
        index |= {"tokenizer_2": ["transformers", "CLIPTokenizer"], "force_zeros_for_empty_prompt": True}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (path / "model_index.json").write_text(json.dumps(index, indent=2))
    return path


def write_single(path: Path, kind: str, *, small: bool = False, dtype: str = "F16", seed: int = 0) -> Path:
    """A single file of a published shape, in the original layout."""
    shapes: dict[str, tuple[int, ...]] = {}
    for component, config, model in _components(kind, small):
        own = _shapes(component, model)
        if component == "unet":
            blocks = len(config["block_out_channels"])
            shapes |= {"model.diffusion_model." + _unet_to_ldm(n, blocks): s for n, s in own.items()}
        elif component == "vae":
            shapes |= {"first_stage_model." + n: s for n, s in _vae_shapes_to_ldm(own).items()}
        elif component == "text_encoder" and kind != "sd2":
            prefix = "conditioner.embedders.0.transformer." if kind == "sdxl" else "cond_stage_model.transformer."
            shapes |= {prefix + n: s for n, s in own.items()}
        else:
            prefix = "conditioner.embedders.1.model." if kind == "sdxl" else "cond_stage_model.model."
            # Stable Diffusion 2 reads the last layer but one: its file has one layer more than is used.
            shapes |= {prefix + n: s for n, s in _openclip_shapes(own, spare=kind == "sd2").items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, shapes, dtype=dtype, seed=seed)
    return path


_RESNET = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
           ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"))  # fmt: skip


def _unet_to_ldm(name: str, blocks: int) -> str:
    for mine, theirs in (("time_embedding.linear_1", "time_embed.0"),
                         ("time_embedding.linear_2", "time_embed.2"),
                         ("add_embedding.linear_1", "label_emb.0.0"),
                         ("add_embedding.linear_2", "label_emb.0.2"),
                         ("conv_in", "input_blocks.0.0"),
                         ("conv_norm_out", "out.0"), ("conv_out", "out.2")):  # fmt: skip
        if name.startswith(mine + "."):
            return name.replace(mine, theirs)
    part = name.split(".")
    if part[0] == "mid_block":
        i = {"resnets": 2 * int(part[2]), "attentions": 1}[part[1]]
        return f"middle_block.{i}." + _inside(".".join(part[3:]), part[1])
    b, layer = int(part[1]), int(part[3])
    rest = ".".join(part[4:])
    if part[0] == "down_blocks":
        if part[2] == "downsamplers":
            return f"input_blocks.{3 * (b + 1)}.0.op.{part[-1]}"
        return f"input_blocks.{1 + 3 * b + layer}.{int(part[2] == 'attentions')}." + _inside(rest, part[2])
    if part[2] == "upsamplers":
        # Behind the block's last attention, or where there is none in its place.
        plain = blocks == 4 and b == 0
        return f"output_blocks.{3 * b + 2}.{1 if plain else 2}.conv.{part[-1]}"
    return f"output_blocks.{3 * b + layer}.{int(part[2] == 'attentions')}." + _inside(rest, part[2])


def _inside(rest: str, kind: str) -> str:
    if kind == "resnets":
        for mine, theirs in _RESNET:
            if rest.startswith(mine + "."):
                return rest.replace(mine, theirs)
    return rest


def _vae_shapes_to_ldm(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    new = {}
    for name, shape in shapes.items():
        part = name.split(".")
        if len(part) > 2 and part[1] in ("down_blocks", "up_blocks"):
            up = part[1] == "up_blocks"
            i = 3 - int(part[2]) if up else int(part[2])
            if part[3] == "resnets":
                rest = ".".join(part[5:]).replace("conv_shortcut", "nin_shortcut")
                name = f"{part[0]}.{'up' if up else 'down'}.{i}.block.{part[4]}.{rest}"
            else:
                name = f"{part[0]}.{'up.' if up else 'down.'}{i}.{'upsample' if up else 'downsample'}.conv.{part[-1]}"
        elif len(part) > 2 and part[1] == "mid_block":
            if part[2] == "resnets":
                name = f"{part[0]}.mid.block_{int(part[3]) + 1}." + ".".join(part[4:])
            else:
                rest = ".".join(part[4:])
                for mine, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
                                     ("to_out.0", "proj_out")):  # fmt: skip
                    rest = rest.replace(mine, theirs)
                name = f"{part[0]}.mid.attn_1.{rest}"
                if len(shape) == 2:
                    shape = (*shape, 1, 1)
        else:
            name = name.replace("conv_norm_out", "norm_out")
        new[name] = shape
    return new


def _openclip_shapes(shapes: dict[str, tuple[int, ...]], *, spare: bool) -> dict[str, tuple[int, ...]]:
    from erase_sd.ldm import _OPENCLIP

    new: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name == "text_projection.weight":
            new["text_projection"] = shape[::-1]
            continue
        own = name.removeprefix("text_model.")
        for theirs, mine in _OPENCLIP:
            own = own.replace(mine, theirs)
        if ".self_attn.q_proj." in own:
            own = own.replace(".self_attn.q_proj.", ".attn.in_proj_")
            shape = (3 * shape[0], *shape[1:])
        elif ".self_attn." in own:
            continue  # k and v: fused with q
        new[own] = shape
    if spare:
        last = max(int(n.split(".")[2]) for n in new if n.startswith("transformer."))
        extra = {n: s for n, s in new.items() if n.startswith(f"transformer.resblocks.{last}.")}
        new |= {n.replace(f".{last}.", f".{last + 1}.", 1): s for n, s in extra.items()}
        new["text_projection"] = (new["token_embedding.weight"][1],) * 2
    return new
