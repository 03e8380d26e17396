"""Text encoders inside single files: built from their tensors, OpenCLIP's names translated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from erase_sd.models.ldm_names import TEXT_KEYS
from erase_sd.models.openclip_names import from_openclip, is_spare
from erase_sd.models.single_file import SingleFile
from erase_sd.models.tensor_files import stream_tensors
from erase_sd.models.towers import Tower
from erase_sd.text.towers import LoadedTower, assemble


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
        # Some files hold the spare layer, some were saved without it: whichever is last must not be
        # taken for it.
        state = {
            new if new.startswith("text_projection") else f"text_model.{new}": take(value)
            for name, value in state.items()
            if not (spec.layer == -1 and is_spare(name))
            for new, take in from_openclip(name)
        }
    elif not any(name.startswith("text_model.") for name in state):  # some tools drop the prefix
        state = {f"text_model.{name}": value for name, value in state.items()}
    try:
        embedding = state["text_model.embeddings.token_embedding.weight"]
        positions = state["text_model.embeddings.position_embedding.weight"]
        inner = state["text_model.encoder.layers.0.mlp.fc1.weight"]
    except KeyError as error:
        raise ValueError(f"the text encoder in this file lacks {error}") from error
    vocab, width = embedding.shape
    layers = 1 + max(
        int(m[1]) for k in state if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", k))
    )
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


def single_file_towers(checkpoint: SingleFile, device: str) -> list[LoadedTower]:
    """The text encoders of a single file, built from its own tensors.

    Raises:
        ValueError: If they, or the tokenizer that the file does not hold, cannot be had.
    """
    from transformers import CLIPTokenizer

    folder = Path(checkpoint.tokenizer)
    if (folder / "tokenizer").is_dir():
        folder = folder / "tokenizer"
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # the library's errors are of many kinds
        raise ValueError(
            f"cannot load the tokenizer {checkpoint.tokenizer}; give --tokenizer a folder with "
            "CLIP's vocab.json and "
            "merges.txt, or a diffusers folder of the same model"
        ) from error
    towers = []
    for (prefix, scheme), spec in zip(
        TEXT_KEYS[checkpoint.kind], checkpoint.architecture.towers, strict=True
    ):
        state = dict(stream_tensors(checkpoint.path, prefix=prefix))
        model = text_model(state, scheme, spec, eos=tokenizer.eos_token_id).to(device)
        pad = 0 if scheme == "openclip" else None  # these were trained with padding by "!", id 0
        towers.append(LoadedTower(spec, tokenizer, model, pad=pad))
    return towers
