"""What an attack is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from erase_sd.algebra.edit import LowRankEdit


@dataclass(frozen=True, eq=False)
class Target:
    """A pipeline and what should come back in it.

    Attributes:
        pipe: The pipeline with the erasure applied.
        concept: Its name.
        prompt: A prompt that means it.
        pictures: Of the concept, for attacks that learn.
        edit: The edit of the token states, if one is applied; the revival inverts it.
        seed: Where a search begins; an attacker may try several.
        original: The unedited pipeline, if `pipe` is not that one with an erasure applied live.
        paused: While it is open, what is applied live is not.
    """

    pipe: Any
    concept: str
    prompt: str
    pictures: Sequence[Image.Image] = field(default=())
    edit: LowRankEdit | None = None
    seed: int = 0
    original: Any = None
    paused: Callable[[], AbstractContextManager[None]] = nullcontext


@torch.no_grad()
def own_pictures(pipe: Any, concept: str, *, count: int = 8, steps: int = 20) -> list[Image.Image]:
    """The attacker's pictures of a concept: what the unedited model draws for it."""
    noise = [torch.Generator().manual_seed(90_000 + i) for i in range(count)]
    return list(
        pipe([f"a photo of a {concept}"] * count, generator=noise, num_inference_steps=steps).images
    )
