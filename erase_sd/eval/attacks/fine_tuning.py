"""Training the keys and values on a few pictures of the concept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from erase_sd.eval.attacks.target import Target
from erase_sd.pipelines.denoising import denoising_loss, latents_of
from erase_sd.pipelines.live import LiveErasure


@contextmanager
def fine_tuned(target: Target, steps: int | None = None) -> Iterator[str]:
    """The prompt as it is, on a model trained on its pictures for 100 steps; undone afterwards."""
    with trainable(target.pipe, target.pictures, target.prompt) as train:
        train(100 if steps is None else steps)
        yield target.prompt


@contextmanager
def trainable(
    pipe: Any,
    images: Sequence[Image.Image],
    prompt: str,
    *,
    lr: float = 1e-4,
    batch: int = 8,
    seed: int = 0,
) -> Iterator[Callable[[int], None]]:
    """Yield `train(steps)`, which trains the cross-attention keys and values on pictures.

    The weights are put back at the end.

    Args:
        pipe: A Stable Diffusion pipeline, possibly erased.
        images: Pictures of the concept.
        prompt: Its prompt.
        lr: Adam's learning rate.
        batch: Noisy images a step.
        seed: Of noise and time steps.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = latents_of(pipe, images)
    parameters = list(LiveErasure.of(pipe).parameters.values())
    saved = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        states = pipe.encode_prompt(prompt, pipe.device, 1, False)[0].expand(batch, -1, -1)
    optimizer = torch.optim.Adam(parameters, lr=lr)

    def train(steps: int) -> None:
        for _ in range(steps):
            loss = denoising_loss(pipe, latents, states, generator)
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p.grad = g
            optimizer.step()

    try:
        yield train
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, saved, strict=True):
                p.copy_(old)
                p.grad = None


def fine_tuning(
    pipe: Any,
    images: Sequence[Image.Image],
    prompt: str,
    recovered: Callable[[], bool],
    *,
    every: int = 10,
    limit: int = 200,
    **options: Any,
) -> int | None:
    """How many steps of fine-tuning bring a concept back.

    Args:
        pipe: A Stable Diffusion pipeline, possibly erased.
        images: Pictures of the concept.
        prompt: Its prompt.
        recovered: Says whether the concept is back; asked every few steps.
        every: Steps between two questions.
        limit: Give up after so many.
        **options: As for `trainable`.

    Returns:
        Steps, a multiple of `every`; None if it did not come back.
    """
    with trainable(pipe, images, prompt, **options) as train:
        for step in range(0, limit + 1, every):
            if recovered():
                return step
            train(every)
    return None
