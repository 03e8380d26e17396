"""Pictures as the page shows them: files in the visitor's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

CELL = 256  # edge of a picture on the page, pixels


@dataclass(frozen=True)
class Shot:
    """One picture to draw.

    Attributes:
        label: What it is of.
        prompt: Its prompt.
        seed: Its seed.
        forget: Whether it should change.
        target: The object that the model's judge should find in it, or None.

    >>> Shot("cat", "a picture of a cat", 0, True).target is None
    True
    """

    label: str
    prompt: str
    seed: int
    forget: bool
    target: str | None = None


@dataclass(frozen=True)
class Pictures:
    """Files of what was drawn, each tuple in the order of the shots.

    Attributes:
        before: Pictures of the untouched model.
        after: Those of the erased one.
        pairs: Both, side by side.
    """

    before: tuple[Path, ...]
    after: tuple[Path, ...]
    pairs: tuple[Path, ...]


def save_pictures(
    before: Sequence[Image.Image], after: Sequence[Image.Image], folder: Path
) -> Pictures:
    """Write pictures of both models, `n` each, as PNG files."""
    names = ("before", "after", "pair")
    paths: dict[str, list[Path]] = {n: [] for n in names}
    for i, (b, a) in enumerate(zip(before, after, strict=True)):
        for name, image in zip(names, (large(b), large(a), pair(b, a)), strict=True):
            path = folder / f"{name}-{i}.png"
            image.save(path)
            paths[name].append(path)
    return Pictures(*(tuple(paths[n]) for n in names))


def pair(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two pictures side by side.

    >>> pair(Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64))).size
    (260, 128)
    """
    edge = max(CELL // 2, min(before.width, CELL))
    sheet = Image.new("RGB", (2 * edge + 4, edge), "white")
    for x, image in ((0, before), (edge + 4, after)):
        sheet.paste(image.resize((edge, edge), Image.Resampling.BICUBIC), (x, 0))
    return sheet


def large(image: Image.Image) -> Image.Image:
    """A picture as the slider shows it.

    >>> large(Image.new("RGB", (64, 64))).size
    (512, 512)
    """
    if image.width >= CELL:
        return image
    return image.resize((2 * CELL, 2 * CELL), Image.Resampling.BICUBIC)
