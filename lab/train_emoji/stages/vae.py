"""The autoencoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lab.train_emoji.networks import build_vae
from lab.train_emoji.plan import Plan
from lab.train_emoji.trainer import Trainer

LATENT_NOISE = 0.05


def train(work: Trainer) -> None:
    """L1 and L2 on pixels, L1 on their gradients, latents with a fixed small noise."""
    images = work.images()
    torch.manual_seed(work.seed)
    vae = build_vae().to(work.device)
    plan: Plan = work.plan["vae"]

    def step_loss(step: int) -> dict[str, Tensor]:
        index = work.rng(2, step).choice(len(images), plan.batch)
        x = work.to_device(images[index])
        with work.autocast():
            posterior = vae.encode(x).latent_dist
            # A learnt variance starts at 1 and drowns the latent for the first thousand steps;
            # a fixed one teaches the decoder to forgive what the U-Net gets slightly wrong.
            z = posterior.mean + LATENT_NOISE * torch.randn_like(posterior.mean)
            y = vae.decode(z).sample
        y = y.float()
        error = y - x
        pixel = error.abs().mean()
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        target = 2 * math.log(LATENT_NOISE)  # so that `latent_dist.sample()` adds the same noise
        prior = (
            1e-4 * posterior.mean.square().mean()
            + 1e-2 * (posterior.logvar - target).square().mean()
        )
        loss = pixel + error.square().mean() + 0.5 * edges + prior.float()
        return {"loss": loss, "pixel": pixel}

    work.loop("vae", vae, step_loss)
    vae.save_pretrained(work.out / "vae")
