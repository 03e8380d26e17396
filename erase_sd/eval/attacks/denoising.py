"""The loss that trained a diffusion model, for attacks that follow its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from erase_sd.pixels import stacked, to_unit


@torch.no_grad()
def latents_of(pipe: Any, images: Sequence[Image.Image]) -> Tensor:
    """Latents `(n, c, h, w)` of pictures, in the units the denoiser was trained in."""
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    x = to_unit(stacked(images, size)).to(pipe.vae.device, pipe.vae.dtype)
    latents: Tensor = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    return latents


def denoising_loss(
    pipe: Any, latents: Tensor, states: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean squared error on random latents, noise and time steps.

    Args:
        pipe: A Stable Diffusion pipeline.
        latents: `(n, c, h, w)`, drawn from with replacement.
        states: `(batch, L, d)` text states.
        generator: On the CPU, so that every device sees the same numbers.
    """
    batch, scheduler = len(states), pipe.scheduler
    pick = torch.randint(0, len(latents), (batch,), generator=generator)
    noise = torch.randn(latents[pick].shape, generator=generator).to(latents)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator).to(
        latents.device
    )
    noisy = scheduler.add_noise(latents[pick], noise, t)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents[pick], noise, t)
    else:
        target = noise
    return F.mse_loss(pipe.unet(noisy, t, states).sample, target)
