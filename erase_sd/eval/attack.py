"""Attacks: can a prompt that nobody would write bring the concept back?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


@contextmanager
def _tokens_in_place(text_encoder: Any, embeddings: Tensor) -> Iterator[None]:
    """Put free embeddings, `(k, d)`, at positions 1..k of whatever the text encoder reads."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        k = len(embeddings)
        free = embeddings.to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([output[:, :1], free, output[:, 1 + k :]], dim=1)

    inner = getattr(text_encoder, "text_model", text_encoder)
    handle = inner.embeddings.token_embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def prompt_attack(
    pipe: Any,
    images: Sequence[Image.Image],
    *,
    tokens: int = 5,
    iterations: int = 40,
    lr: float = 0.01,
    batch: int = 8,
    seed: int = 0,
) -> Tensor:
    """Find token embeddings that make a (possibly erased) pipeline draw some images' concept again.

    Minimises the denoising loss on the images over `tokens` free token embeddings, through the text
    encoder and the denoiser; a white-box attack in the space between words.

    Args:
        pipe: A Stable Diffusion pipeline; its weights are not changed.
        images: Pictures of the concept.
        tokens: How many free embeddings stand between BOS and EOS.
        iterations: Gradient steps.
        lr: Adam's learning rate.
        batch: Noisy images a step.
        seed: Of the initial tokens, the noise and the time steps.

    Returns:
        `(1, L, d)` text states to pass as `prompt_embeds`.

    Source: UnlearnDiffAtk (arXiv 2310.11868), with embeddings instead of discrete tokens, which is stronger.
    """
    generator = torch.Generator().manual_seed(seed)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pixels = np.stack([np.asarray(i.convert("RGB").resize((size, size)), np.float32) for i in images])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    table = inner.embeddings.token_embedding.weight.detach()
    start = torch.randint(0, len(table) - 2, (tokens,), generator=generator)
    free = table[start].clone().float().requires_grad_(True)
    tokenizer = pipe.tokenizer
    eos = tokenizer.eos_token_id
    length = min(tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings)
    ids = torch.full((1, length), eos)
    ids[0, 0] = tokenizer.bos_token_id
    ids[0, 1 : 1 + tokens] = start  # so that pooling finds EOS behind the free tokens
    optimizer = torch.optim.Adam([free], lr=lr)
    scheduler = pipe.scheduler
    with _tokens_in_place(pipe.text_encoder, free):
        for _ in range(iterations):
            pick = torch.randint(0, len(latents), (batch,), generator=generator)
            noise = torch.randn(latents[pick].shape, generator=generator)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
            noisy = scheduler.add_noise(latents[pick], noise, t)
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents[pick], noise, t)
            else:
                target = noise
            states = pipe.text_encoder(ids).last_hidden_state.expand(batch, -1, -1)
            loss = F.mse_loss(pipe.unet(noisy, t, states).sample, target)
            (gradient,) = torch.autograd.grad(loss, free)
            free.grad = gradient  # of the free tokens only: the networks gather none
            optimizer.step()
        with torch.no_grad():
            return pipe.text_encoder(ids).last_hidden_state
