"""The embedded world for classifiers.

Scenes as labelled images, and its CLIP as a zero-shot classifier.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from erase_sd.emoji.clip import load_clip
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import sample_scene
from erase_sd.emoji.world import available_objects, load_world, with_article
from erase_sd.vision.data import Data
from erase_sd.vision.pretrained import ZeroShot, zero_shot
from erase_sd.vision.samples import Form


def scenes(train: int = 30, test: int = 20, *, form: Form | None = None) -> Data:
    """Scenes of one object each, for all objects of the embedded world.

    The finer name is the artist's.

    Args:
        train: How many of each object.
        test: Likewise.
        form: What the images are made into.
    """
    world, held = load_world(), available_objects()
    rng = np.random.default_rng(2024)
    form = form or Form()
    parts = []
    for count in (train, test):
        images: list[np.ndarray] = []
        labels: list[int] = []
        artists: list[str] = []
        for i in range(len(world.names)):
            while len(labels) < (i + 1) * count:
                scene = sample_scene(rng, pairs=0)
                if i in held[scene.artist]:
                    images.append(render(replace(scene, objects=(i,))))
                    labels.append(i)
                    artists.append(world.artists[scene.artist])
        pixels = form.pictures(np.stack(images), "emoji")
        parts.append((pixels, torch.tensor(labels), tuple(artists)))
    (a, b, c), (d, e, f) = parts
    return Data("emoji", a, b, d, e, tuple(world.names), c, f)


def emoji_clip() -> ZeroShot:
    """The embedded CLIP as a classifier of the embedded world's objects."""
    clip, tokenizer = load_clip()
    return zero_shot(clip, tokenizer, [with_article(n) for n in load_world().names])
