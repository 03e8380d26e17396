"""Probes that go past the prompt: fresh noise, half-drawn and masked pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from erase_sd.eval.attacks.target import Target
from erase_sd.pipelines.denoising import denoised

# Pictures of some seeds, by denoising steps and guidance.
Draw = Callable[[Sequence[int], int, float], list[Image.Image]]
# Share of the process' standard deviation; at the whole of it models whose last step is pure noise
# take the root of a rounding error below zero.
_FRESH = 0.99
_HIDDEN = 5 / 8  # of a masked picture, both sides, in its middle


@contextmanager
def noise(target: Target, steps: int | None = None) -> Iterator[Draw]:
    """Fresh noise at every step of the way, which leads off the paths that training closed.

    Raises:
        ValueError: If steps are given: there is nothing to repeat.

    Source: arXiv 2505.17013, noise-based probing, at nearly the variance of the process.
    """
    _once("noise", steps)
    pipe = target.pipe

    def draw(seeds: Sequence[int], steps: int, guidance: float) -> list[Image.Image]:
        kept = pipe.scheduler
        pipe.scheduler = DDIMScheduler.from_config(kept.config)
        try:
            return list(
                pipe(
                    [target.prompt] * len(seeds), eta=_FRESH, generator=_generators(seeds),
                    num_inference_steps=steps, guidance_scale=guidance,
                ).images
            )  # fmt: skip
        finally:
            pipe.scheduler = kept

    yield draw


@contextmanager
def completion(target: Target, steps: int | None = None) -> Iterator[Draw]:
    """The original draws the first half of the way, the erased model the rest.

    Raises:
        ValueError: If steps are given: there is nothing to repeat.
    """
    _once("completion", steps)

    def draw(seeds: Sequence[int], steps: int, guidance: float) -> list[Image.Image]:
        way = _Way(target, seeds, steps, guidance)
        half = steps // 2
        with target.paused():
            x = way.along(target.original or target.pipe, way.start, way.times[:half])
        return way.pictures(way.along(target.pipe, x, way.times[half:]))

    yield draw


@contextmanager
def masked(target: Target, steps: int | None = None) -> Iterator[Draw]:
    """The original's picture with its middle taken out, for the erased model to fill.

    Raises:
        ValueError: If steps are given: there is nothing to repeat.
    """
    _once("masked", steps)

    def draw(seeds: Sequence[int], steps: int, guidance: float) -> list[Image.Image]:
        way = _Way(target, seeds, steps, guidance)
        with target.paused():
            known = way.along(target.original or target.pipe, way.start, way.times)
        hidden = middle(known)
        # Other noise than the picture was drawn from, or its middle would come back with it.
        x = way.noise([s + 500_000 for s in seeds])
        for i, t in enumerate(way.times):
            x = way.along(target.pipe, x, [t])
            kept = known
            if i + 1 < len(way.times):
                kept = way.scheduler.add_noise(known, way.start, way.times[i + 1])
            x = torch.where(hidden, x, kept)
        return way.pictures(x)

    yield draw


def middle(latents: Tensor) -> Tensor:
    """Where the middle of pictures is, `(1, 1, h, w)`.

    >>> int(middle(torch.zeros(2, 4, 16, 16)).sum())
    100
    """
    height, width = latents.shape[-2:]
    found = torch.zeros(1, 1, height, width, dtype=torch.bool, device=latents.device)
    a, b = round(height * (1 - _HIDDEN) / 2), round(width * (1 - _HIDDEN) / 2)
    found[..., a : height - a, b : width - b] = True
    return found


def _once(name: str, steps: int | None) -> None:
    if steps is not None:
        raise ValueError(f"{name} takes no steps, got {steps}")


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


class _Way:
    """The way of some pictures from noise, in steps that any model can take."""

    def __init__(self, target: Target, seeds: Sequence[int], steps: int, guidance: float) -> None:
        self.pipe, self.guidance = target.pipe, guidance
        self.scheduler: Any = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.scheduler.set_timesteps(steps, device=self.pipe.device)
        self.times = list(self.scheduler.timesteps)
        told = self.pipe.encode_prompt([target.prompt, ""], self.pipe.device, 1, False)[0]
        self.states, self.null = (s.expand(len(seeds), -1, -1) for s in told.split(1))
        self.start = self.noise(seeds)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Pure noise `(n, c, h, w)`."""
        config = self.pipe.unet.config
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        drawn = torch.cat([torch.randn(shape, generator=g) for g in _generators(seeds)])
        return drawn.to(self.pipe.device, self.pipe.unet.dtype) * self.scheduler.init_noise_sigma

    def along(self, pipe: Any, latents: Tensor, over: Sequence[Tensor]) -> Tensor:
        """Latents after some steps of a model."""
        return denoised(
            lambda x, t, s: pipe.unet(x, t, encoder_hidden_states=s).sample,
            self.scheduler, latents, self.states, self.null, guidance=self.guidance, over=over,
        )  # fmt: skip

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of clean latents."""
        vae = self.pipe.vae
        images = vae.decode(latents / vae.config.scaling_factor).sample
        return list(self.pipe.image_processor.postprocess(images, output_type="pil"))
