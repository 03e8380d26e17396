"""Render every training scene once."""

from __future__ import annotations

import os

import numpy as np
from tqdm import tqdm

from erase_sd.emoji.render import render
from erase_sd.emoji.world import SIZE
from lab.train_emoji.trainer import Trainer


def train(work: Trainer) -> None:
    """Render every training scene once."""
    target = work.out / "scenes.npy"
    if target.exists():
        return
    scenes = work.scenes()
    images = np.lib.format.open_memmap(
        target.with_suffix(".tmp"), "w+", np.uint8, (len(scenes), SIZE, SIZE, 3)
    )
    for i, scene in enumerate(tqdm(scenes, desc="scenes", mininterval=5)):
        images[i] = render(scene)
    images.flush()
    os.replace(target.with_suffix(".tmp"), target)
