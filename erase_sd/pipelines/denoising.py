"""What a diffusion model was trained by, and drawing part of the way: for training and attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from erase_sd.pixels import stacked, to_unit

# From latents `(n, c, h, w)`, one time step and text states `(n, L, d)` to a prediction.
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def latents_of(pipe: Any, images: Sequence[Image.Image]) -> Tensor:
    """Latents `(n, c, h, w)` of pictures, in the units the denoiser was trained in."""
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    x = to_unit(stacked(images, size)).to(pipe.vae.device, pipe.vae.dtype)
    latents: Tensor = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    return latents


def noised(
    scheduler: Any, latents: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents under random noise, each at a random time step.

    Args:
        scheduler: Of the model.
        latents: `(n, c, h, w)`.
        generator: On the CPU, so that every device sees the same numbers.

    Returns:
        The noisy latents and what the denoiser should predict, both `(n, c, h, w)`, and the time
        steps `(n,)`.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    last = scheduler.config.num_train_timesteps
    t = torch.randint(0, last, (len(latents),), generator=generator).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, t)
    if scheduler.config.prediction_type == "v_prediction":
        return noisy, scheduler.get_velocity(latents, noise, t), t
    return noisy, noise, t


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
    pick = torch.randint(0, len(latents), (len(states),), generator=generator)
    noisy, target, t = noised(pipe.scheduler, latents[pick], generator)
    return F.mse_loss(pipe.unet(noisy, t, states).sample, target)


@torch.no_grad()
def denoised(
    predict: Predict,
    scheduler: Any,
    latents: Tensor,
    states: Tensor,
    null: Tensor,
    *,
    guidance: float,
    over: Iterable[Tensor],
) -> Tensor:
    """Latents after some of a deterministic scheduler's steps under guidance.

    Args:
        predict: The denoiser.
        scheduler: One without memory, such as DDIM, its time steps set.
        latents: `(n, c, h, w)` at the first of these steps' noise.
        states: `(n, L, d)` of the prompts.
        null: `(n, L, d)` of the empty prompt.
        guidance: Classifier-free guidance scale.
        over: The time steps, falling.
    """
    for t in over:
        given = scheduler.scale_model_input(torch.cat([latents, latents]), t)
        empty, told = predict(given, t, torch.cat([null, states])).chunk(2)
        latents = scheduler.step(empty + guidance * (told - empty), t, latents).prev_sample
    return latents
