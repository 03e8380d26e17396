"""Scenes to pixels: the sprite archive and the compositor."""

from __future__ import annotations

import io
import zipfile
from functools import cache

import numpy as np
from PIL import Image

from erase_sd.emoji.scenes import Scene
from erase_sd.emoji.world import SIZE, SPRITES, load_world


@cache
def load_sprites() -> dict[tuple[int, int], Image.Image]:
    """All sprites, keyed by (artist index, object index): square premultiplied RGBA, 96 px."""
    world = load_world()
    sprites = {}
    with zipfile.ZipFile(SPRITES) as z:
        for name in z.namelist():
            artist, stem = name.split("/")
            picture = Image.open(io.BytesIO(z.read(name))).convert("RGBA")
            square = Image.new("RGBA", (96, 96))
            picture.thumbnail((96, 96), Image.Resampling.LANCZOS)
            square.paste(picture, ((96 - picture.width) // 2, (96 - picture.height) // 2))
            key = world.artists.index(artist), world.names.index(stem.removesuffix(".webp"))
            sprites[key] = square.convert("RGBa")  # premultiplied: no dark fringes when resampled
    return sprites


def render(scene: Scene) -> np.ndarray:
    """Draw a scene.

    Returns:
        `(64, 64, 3)` uint8, sRGB.

    >>> render(Scene((0,), 0, "blue", ("big",), 1)).shape
    (64, 64, 3)
    """
    rng = np.random.default_rng(scene.pose_seed)
    colour = np.asarray(load_world().backgrounds[scene.background]) + rng.integers(-10, 11, 3)
    canvas = Image.new("RGBA", (SIZE, SIZE), (*np.clip(colour, 0, 255).tolist(), 255)).convert(
        "RGBa"
    )
    pair = len(scene.objects) == 2
    left_first = bool(rng.random() < 0.5)
    for i, (index, size) in enumerate(zip(scene.objects, scene.sizes, strict=True)):
        if pair:
            extent = SIZE * rng.uniform(0.44, 0.52)
            side = 0.26 if (i == 0) == left_first else 0.74
            cx, cy = SIZE * (side + rng.uniform(-0.02, 0.02)), SIZE * rng.uniform(0.32, 0.68)
        else:
            low, high = {"small": (0.5, 0.58), "big": (0.84, 0.92), "": (0.64, 0.8)}[size]
            extent = SIZE * rng.uniform(low, high)
            slack = (SIZE - extent) / 2 * 0.8
            cx, cy = SIZE / 2 + rng.uniform(-slack, slack), SIZE / 2 + rng.uniform(-slack, slack)
        sprite = load_sprites()[scene.artist, index]
        if rng.random() < 0.5:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        angle = np.deg2rad(rng.uniform(-12, 12))
        # Resize first (antialiased), then rotate about the centre and shift, so small sprites stay
        # clean.
        px = max(8, round(extent))
        sprite = sprite.resize((px, px), Image.Resampling.LANCZOS, reducing_gap=None)
        c, s, h = np.cos(angle), np.sin(angle), px / 2
        affine = (c, s, h - c * cx - s * cy, -s, c, h + s * cx - c * cy)
        layer = sprite.transform(
            (SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
        )
        top = np.asarray(layer, np.float32)
        under = np.asarray(canvas, np.float32)
        mixed = top + under * (1 - top[..., 3:] / 255)
        canvas = Image.fromarray(np.clip(mixed, 0, 255).round().astype(np.uint8), "RGBa")
    return np.asarray(canvas.convert("RGB"))
