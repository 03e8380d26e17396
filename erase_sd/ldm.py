"""The original (LDM, sgm) layout of single-file checkpoints: names of tensors, and text encoders.

A1111, ComfyUI and most published `.safetensors` files of Stable Diffusion 1, 2 and XL use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from erase_sd.sites import Architecture, Tower, by_name
from erase_sd.text import assemble

UNET = "model.diffusion_model."
EMA = "model_ema."  # training's running average of the same weights, in some published files
_PER_BLOCK = 3  # two layers and a down- or upsampler, in every published model


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
    "sdxl": (("conditioner.embedders.0.transformer.", "clip"), ("conditioner.embedders.1.model.", "openclip")),
}


def layout(names: Iterable[str]) -> str:
    """Which published model a single file is: "sd1", "sd2" or "sdxl".

    Raises:
        ValueError: If it is none of them.
    """
    names = list(names)
    if not any(n.startswith(UNET) for n in names):
        if any("lora" in n for n in names):
            raise ValueError("this is a LoRA, not a checkpoint; erase from the base model it belongs to")
        raise ValueError(
            "not a single-file checkpoint of Stable Diffusion 1, 2 or XL: it has no model.diffusion_model.* tensors"
        )
    for name in ("sdxl", "sd2", "sd1"):
        if all(any(n.startswith(prefix) for n in names) for prefix, _ in TEXT_KEYS[name]):
            return name
    raise ValueError("this single file has no text encoder of Stable Diffusion 1, 2 or XL (base, not refiner)")


def architecture_of(kind: str) -> Architecture:
    """The architecture behind a layout."""
    return by_name("sdxl" if kind == "sdxl" else "sd")


def text_model(state: Mapping[str, Tensor], scheme: str, spec: Tower, *, eos: int) -> Any:
    """Build a transformers text encoder from the tensors of a single file.

    Args:
        state: The encoder's tensors, names without their prefix.
        scheme: "clip" (transformers' names) or "openclip".
        spec: What the architecture reads of it.
        eos: The tokenizer's end-of-text id, where the pooled output is taken.

    Returns:
        `CLIPTextModel` or `CLIPTextModelWithProjection`, float32, in eval mode.

    Raises:
        ValueError: If tensors are missing or misshapen.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if scheme == "openclip":
        # Stable Diffusion 2 reads the last layer but one, after the final norm: the last is left out.
        state = _from_openclip(state, drop_last=spec.layer == -1)
    try:
        embedding = state["text_model.embeddings.token_embedding.weight"]
        positions = state["text_model.embeddings.position_embedding.weight"]
        inner = state["text_model.encoder.layers.0.mlp.fc1.weight"]
    except KeyError as error:
        raise ValueError(f"the text encoder in this file lacks {error}") from error
    vocab, width = embedding.shape
    layers = 1 + max(int(m[1]) for k in state if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", k)))
    projection = state.get("text_projection.weight")
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner.shape[0],
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        max_position_embeddings=len(positions),
        projection_dim=width if projection is None else projection.shape[0],
        hidden_act="gelu" if scheme == "openclip" else "quick_gelu",
        eos_token_id=eos,
    )
    Model = CLIPTextModelWithProjection if spec.pooled == "text_embeds" else CLIPTextModel
    return assemble(Model, config, state.items())


_OPENCLIP = (
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)


def _from_openclip(state: Mapping[str, Tensor], *, drop_last: bool) -> dict[str, Tensor]:
    """OpenCLIP's text tower under transformers' names; one fused matrix becomes q, k and v."""
    new: dict[str, Tensor] = {}
    last = max((int(m[1]) for k in state if (m := re.match(r"transformer\.resblocks\.(\d+)\.", k))), default=-1)
    for name, value in state.items():
        if drop_last and name.startswith(f"transformer.resblocks.{last}."):
            continue
        if name == "text_projection":
            new["text_projection.weight"] = value.T.contiguous()  # OpenCLIP multiplies from the left
            continue
        for old, mine in _OPENCLIP:
            name = name.replace(old, mine)
        if m := re.match(r"(encoder\.layers\.\d+)\.attn\.in_proj_(weight|bias)$", name):
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                new[f"text_model.{m[1]}.self_attn.{part}_proj.{m[2]}"] = chunk
        elif name.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            new[f"text_model.{name}"] = value
    return new
