"""What a live pipeline draws, and what its weights are."""

import numpy as np
import torch

from erase_sd.pipelines import generate

PROMPTS, SEEDS = ["a photo of a cat", "a dog by noto"], [3, 4]


def draw(pipe):
    images = generate(pipe, PROMPTS, SEEDS, steps=4)
    return np.stack([np.asarray(i, np.float32) / 255 for i in images])


def state(pipe):
    return {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)
