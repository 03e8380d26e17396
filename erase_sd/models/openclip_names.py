"""OpenCLIP's text tower under transformers' names."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

SPARE_LAYER = 23  # the last of OpenCLIP's ViT-H/14, which Stable Diffusion 2 does not read

OPENCLIP_PARTS = (
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


def from_openclip(name: str) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """What a tensor of OpenCLIP becomes.

    Names (without `text_model.`) and how to take each out of it.

    One fused matrix becomes queries, keys and values; what transformers has no place for becomes
    nothing.
    """
    if name == "text_projection":  # OpenCLIP multiplies from the left
        return [("text_projection.weight", lambda value: value.T.contiguous())]
    for theirs, ours in OPENCLIP_PARTS:
        name = name.replace(theirs, ours)
    if m := re.match(r"(encoder\.layers\.\d+)\.attn\.in_proj_(weight|bias)$", name):
        layer, kind = m.groups()

        def third(i: int) -> Callable[[Tensor], Tensor]:
            return lambda value: value.chunk(3)[i]

        return [(f"{layer}.self_attn.{part}_proj.{kind}", third(i)) for i, part in enumerate("qkv")]
    if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
        return [(name, lambda value: value)]
    return []


def is_spare(name: str) -> bool:
    """Whether a tensor belongs to the layer that Stable Diffusion 2 leaves out."""
    return name.startswith(f"transformer.resblocks.{SPARE_LAYER}.")
