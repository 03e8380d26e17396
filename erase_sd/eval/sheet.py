"""Before/after sheets: the same prompt and seed, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont


@dataclass(frozen=True)
class Row:
    """One prompt of a sheet: its images before and after, seed by seed."""

    label: str
    group: str
    before: tuple[Image.Image, ...]
    after: tuple[Image.Image, ...]


def before_after_sheet(rows: Sequence[Row], *, cell: int = 112, title: str = "") -> Image.Image:
    """Draw rows of "before | after" image pairs, grouped, on white.

    Args:
        rows: Prompts with equally many images each.
        cell: Edge of an image, pixels.
        title: Heading.
    """
    font, bold = ImageFont.load_default(14), ImageFont.load_default(18)
    count = len(rows[0].before)
    margin, gap, label = 16, 6, 150
    block = count * (cell + gap)
    width = 2 * margin + label + 2 * block + 24
    groups = list(dict.fromkeys(r.group for r in rows))
    height = margin + 34 + 26 + sum(28 for _ in groups) + len(rows) * (cell + gap) + margin
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, fill="black", font=bold)
    y = margin + 34
    left, right = margin + label, margin + label + block + 24
    draw.text((left, y), "before", fill="#555", font=font)
    draw.text((right, y), "after, same seeds", fill="#555", font=font)
    y += 26
    for group in groups:
        draw.text(
            (margin, y + 2), group, fill="#b00020" if group == groups[0] else "#1b5e20", font=bold
        )
        y += 28
        for row in (r for r in rows if r.group == group):
            for i, line in enumerate(_wrap(row.label, 20)[:5]):
                draw.text((margin, y + 8 + 18 * i), line, fill="black", font=font)
            for x, images in ((left, row.before), (right, row.after)):
                for i, image in enumerate(images):
                    big = image.resize((cell, cell), Image.Resampling.BICUBIC)
                    sheet.paste(big, (x + i * (cell + gap), y))
            y += cell + gap
    return sheet


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def image_grid(images: Sequence[Image.Image], columns: int, *, cell: int = 128) -> Image.Image:
    """Images in reading order, `columns` a row."""
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * cell, rows * cell), "white")
    for i, image in enumerate(images):
        big = image.resize((cell, cell), Image.Resampling.NEAREST)
        grid.paste(big, ((i % columns) * cell, (i // columns) * cell))
    return grid
