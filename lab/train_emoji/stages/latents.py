"""Every training scene through the autoencoder, once."""

from __future__ import annotations

import os

import torch
from tqdm import tqdm

from lab.train_emoji.trainer import Trainer


@torch.no_grad()
def train(work: Trainer) -> None:
    """Encode every training scene once; record the scale that makes latents unit-variance."""
    target = work.out / "latents.pt"
    if target.exists():
        return
    images, vae = work.images(), work.load_vae()
    chunks = []
    for start in tqdm(range(0, len(images), 128), desc="latents", mininterval=5):
        with work.autocast():
            chunks.append(
                vae.encode(work.to_device(images[start : start + 128]))
                .latent_dist.mean.cpu()
                .half()
            )
    latents = torch.cat(chunks)
    # A generator that goes on must go on in the units it was trained in.
    scale = vae.config.scaling_factor if work.init else 1 / float(latents.float().std())
    torch.save({"latents": latents, "scale": scale}, target.with_suffix(".tmp"))
    os.replace(target.with_suffix(".tmp"), target)
