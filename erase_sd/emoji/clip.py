"""emoji-clip, as evaluation asks for it: unit embeddings of pictures and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from erase_sd.emoji.models import IMAGE_TOWER, WEIGHTS
from erase_sd.emoji.world import SIZE
from erase_sd.pixels import stacked, to_unit

TOKENS = 77


def load_clip(weights: Path = WEIGHTS) -> tuple[Any, Any]:
    """The shipped emoji-clip and its tokenizer, float32, in eval mode.

    Its text tower is emoji-sd's text encoder, so the package holds it once.
    """
    folder = weights / "emoji-clip"
    local = {"local_files_only": True, "trust_remote_code": False}
    clip = CLIPModel(CLIPConfig.from_pretrained(folder, **local))
    state = load_file(folder / IMAGE_TOWER)
    state |= load_file(weights / "emoji-sd" / "text_encoder" / "model.safetensors")
    clip.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return clip.eval(), CLIPTokenizer.from_pretrained(folder, **local)


@torch.no_grad()
def embed_images(clip: Any, images: np.ndarray) -> Tensor:
    """Unit embeddings `(n, d)` of `(n, 64, 64, 3)` uint8."""
    parts = torch.split(to_unit(images), 128)
    out = [clip.visual_projection(clip.vision_model(part).pooler_output) for part in parts]
    return torch.nn.functional.normalize(torch.cat(out), dim=1)


@torch.no_grad()
def embed_texts(clip: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Unit embeddings `(n, d)` of texts."""
    ids = tokenizer(list(texts), padding="max_length", max_length=TOKENS, truncation=True).input_ids
    out = clip.text_projection(clip.text_model(torch.tensor(ids)).pooler_output)
    return torch.nn.functional.normalize(out, dim=1)


def embedder(argument: str = "") -> Callable[[Sequence[Any]], np.ndarray]:
    """A function from pictures, or from texts, to unit embeddings `(n, d)`.

    Raises:
        ValueError: If there is an argument: there is one emoji-clip.

    >>> embedder()(["a photo of a cat"]).shape
    (1, 192)
    """
    if argument:
        raise ValueError(f"emoji-clip takes no argument, got {argument!r}")
    clip, tokenizer = load_clip()

    def embed(items: Sequence[Any]) -> np.ndarray:
        if isinstance(items[0], str):
            return embed_texts(clip, tokenizer, items).numpy()
        return embed_images(clip, stacked(items, SIZE)).numpy()

    return embed
