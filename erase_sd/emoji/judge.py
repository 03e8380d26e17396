"""The independent judge of the embedded world, as a detector of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erase_sd.emoji.models import Judge, load_judge
from erase_sd.emoji.world import SIZE, load_world


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What the judge saw in `n` images.

    Attributes:
        objects: `(n, concepts)` logits, independent.
        artists: `(n, artists)` logits.
        backgrounds: `(n, backgrounds)` logits.
    """

    objects: Tensor
    artists: Tensor
    backgrounds: Tensor

    @property
    def top(self) -> list[str]:
        """The most likely object of each image."""
        names = load_world().names
        return [names[i] for i in self.objects.argmax(1).tolist()]

    @property
    def artist(self) -> list[str]:
        """The most likely artist of each image."""
        artists = load_world().artists
        return [artists[i] for i in self.artists.argmax(1).tolist()]

    @property
    def background(self) -> list[str]:
        """The most likely background of each image."""
        grounds = list(load_world().backgrounds)
        return [grounds[i] for i in self.backgrounds.argmax(1).tolist()]

    def found(self, names: Sequence[str]) -> list[bool]:
        """Whether all named objects are among each image's `len(names)` most likely ones."""
        wanted = {load_world().names.index(n) for n in names}
        return [wanted <= set(row) for row in self.objects.topk(len(wanted), dim=1).indices.tolist()]


@cache
def _judge() -> Judge:
    return load_judge()


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    chunk = [i.convert("RGB").resize((SIZE, SIZE)) for i in images]
    x = torch.from_numpy(np.stack([np.asarray(i) for i in chunk])).permute(0, 3, 1, 2).float()
    return x / 127.5 - 1


@torch.no_grad()
def embed(images: Sequence[Image.Image], *, batch: int = 128) -> np.ndarray:
    """`(n, features)` of RGB images: what the judge's verdicts are made of."""
    return np.concatenate(
        [_judge().embed(_pixels(images[i : i + batch])).numpy() for i in range(0, len(images), batch)]
    )


@torch.no_grad()
def judge(images: Sequence[Image.Image], *, batch: int = 128) -> Verdicts:
    """Ask the judge about RGB images; other sizes than 64 px are resized."""
    rows = []
    for start in range(0, len(images), batch):
        rows.append(_judge()(_pixels(images[start : start + batch])))
    o, a, b = (torch.cat(t) for t in zip(*rows, strict=True))
    return Verdicts(o, a, b)
