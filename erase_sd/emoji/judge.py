"""The independent judge of the embedded world: which object, which artist, which background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from erase_sd.emoji.models import JUDGE
from erase_sd.emoji.world import SIZE, load_world
from erase_sd.models.files import file_hash
from erase_sd.pixels import stacked, to_unit


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Judge(nn.Module):
    """Independent classifier of scenes: which objects, which artist, which background.

    Trained on renders and their VAE reconstructions; the generator's training never sees it.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        world = load_world()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 4 * width, 6 * width):
            layers += [
                nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
                _Residual(out),
            ]
            channels = out
        self.trunk = nn.Sequential(*layers)
        features = 2 * channels  # mean for the ground, maximum for the objects
        self.features = features
        self.objects = nn.Linear(features, len(world.concepts))
        self.artist = nn.Linear(features, len(world.artists))
        self.background = nn.Linear(features, len(world.backgrounds))

    def embed(self, images: Tensor) -> Tensor:
        """`(n, 3, 64, 64)` in [-1, 1] to `(n, features)`."""
        x = self.trunk(images)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of objects (independent), artist and background (exclusive)."""
        x = self.embed(images)
        return self.objects(x), self.artist(x), self.background(x)


def load_judge(path: Path = JUDGE) -> Judge:
    """The shipped judge, in eval mode and float32."""
    judge = Judge()
    judge.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    )
    return judge.eval()


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


@cache
def shipped() -> Judge:
    """The shipped judge, loaded once."""
    return load_judge()


@torch.no_grad()
def embed(images: Sequence[Image.Image], *, batch: int = 128) -> np.ndarray:
    """`(n, features)` of RGB images: what the judge's verdicts are made of."""
    parts = [stacked(images[i : i + batch], SIZE) for i in range(0, len(images), batch)]
    return np.concatenate([shipped().embed(to_unit(part)).numpy() for part in parts])


@torch.no_grad()
def judge(
    images: Sequence[Image.Image], *, batch: int = 128, network: nn.Module | None = None
) -> Verdicts:
    """Ask a judge about RGB images; other sizes than 64 px are resized.

    Args:
        images: `n` pictures.
        batch: Images at once.
        network: From `(n, 3, 64, 64)` in [-1, 1] to logits of objects, artist and background;
            default: the shipped judge.

    >>> judge([Image.new("RGB", (64, 64), "blue")]).background
    ['blue']
    """
    ask = network or shipped()
    rows = [
        ask(to_unit(stacked(images[i : i + batch], SIZE))) for i in range(0, len(images), batch)
    ]
    o, a, b = (torch.cat(t) for t in zip(*rows, strict=True))
    return Verdicts(o, a, b)


class EmojiJudge:
    """The judge as a detector: the most likely object and artist of each picture.

    Args:
        every: Whether all objects that are more likely there than not are found, and the
            background; then `confidence` is the probability of the likeliest object.
    """

    name = "judge"

    def __init__(self, every: bool = False) -> None:
        self.every = every
        self.about: dict[str, Any] = {"detector": self.name, "weights": file_hash(JUDGE)}
        if every:
            self.about["labels"] = "every object above one half, artist, background"

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """`labels`: the most likely object and artist; `background` beside them."""
        seen = judge(images)
        kinds = zip(seen.top, seen.artist, seen.background, strict=True)
        if not self.every:
            return [
                {"labels": [top, artist], "background": ground} for top, artist, ground in kinds
            ]
        names, odds = load_world().names, seen.objects.sigmoid()
        return [
            {
                "labels": [*(n for n, p in zip(names, row.tolist(), strict=True) if p > 0.5),
                           artist, ground],
                "top": top,
                "confidence": round(float(row.max()), 4),
            }
            for (top, artist, ground), row in zip(kinds, odds, strict=True)
        ]  # fmt: skip


def extractor(argument: str = "") -> Callable[[Sequence[Image.Image]], np.ndarray]:
    """The judge's features, as evaluation asks for them; it takes no argument.

    Raises:
        ValueError: If there is one.
    """
    if argument:
        raise ValueError(f"the judge's features take no argument, got {argument!r}")
    return embed
