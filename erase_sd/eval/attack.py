"""Attacks: can a prompt that nobody would write bring the concept back?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from erase_sd.background import vocabulary


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
    latents = _latents(pipe, images)
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
    with _tokens_in_place(pipe.text_encoder, free):
        for _ in range(iterations):
            states = pipe.text_encoder(ids).last_hidden_state.expand(batch, -1, -1)
            loss = _denoising_loss(pipe, latents, states, generator)
            (gradient,) = torch.autograd.grad(loss, free)
            free.grad = gradient  # of the free tokens only: the networks gather none
            optimizer.step()
        with torch.no_grad():
            return pipe.text_encoder(ids).last_hidden_state


@torch.no_grad()
def _latents(pipe: Any, images: Sequence[Image.Image]) -> Tensor:
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    pixels = np.stack([np.asarray(i.convert("RGB").resize((size, size)), np.float32) for i in images])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor


def _denoising_loss(pipe: Any, latents: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
    """The loss that trained the model, on random images, noise and time steps, given text states."""
    batch, scheduler = len(states), pipe.scheduler
    pick = torch.randint(0, len(latents), (batch,), generator=generator)
    noise = torch.randn(latents[pick].shape, generator=generator)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator)
    noisy = scheduler.add_noise(latents[pick], noise, t)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents[pick], noise, t)
    else:
        target = noise
    return F.mse_loss(pipe.unet(noisy, t, states).sample, target)


def fine_tuning(
    pipe: Any,
    images: Sequence[Image.Image],
    prompt: str,
    recovered: Callable[[], bool],
    *,
    every: int = 10,
    limit: int = 200,
    lr: float = 1e-4,
    batch: int = 8,
    seed: int = 0,
) -> int | None:
    """How many steps of fine-tuning bring a concept back.

    Trains a copy of the cross-attention keys and values on a few pictures with the concept's own prompt; the
    pipeline's weights are put back at the end.

    Args:
        pipe: A Stable Diffusion pipeline, possibly erased.
        images: Pictures of the concept.
        prompt: Its prompt.
        recovered: Says whether the concept is back; asked every few steps.
        every: Steps between two questions.
        limit: Give up after so many.
        lr: Adam's learning rate.
        batch: Noisy images a step.
        seed: Of noise and time steps.

    Returns:
        Steps, a multiple of `every`; None if it did not come back.
    """
    from erase_sd.pipelines.live import LiveErasure

    generator = torch.Generator().manual_seed(seed)
    latents = _latents(pipe, images)
    parameters = list(LiveErasure.of(pipe).parameters.values())
    saved = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        states = pipe.encode_prompt(prompt, "cpu", 1, False)[0].expand(batch, -1, -1)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    try:
        for step in range(0, limit + 1, every):
            if recovered():
                return step
            for _ in range(every):
                loss = _denoising_loss(pipe, latents, states, generator)
                for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    p.grad = g
                optimizer.step()
        return None
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, saved, strict=True):
                p.copy_(old)
                p.grad = None


def concept_prompts(
    encoder: Any,
    concept_pairs: Sequence[tuple[str, str]],
    prompt: str,
    *,
    strength: float = 3.0,
    tokens: int = 6,
    population: int = 64,
    generations: int = 40,
    seed: int = 0,
) -> str:
    """Ring-A-Bell: a prompt of real tokens whose text embedding is that of `prompt` plus the concept.

    The concept's vector is the mean difference of pairs of prompts with and without it; a genetic
    search over the vocabulary finds tokens whose embedding comes near. It needs the text encoder
    alone, so it attacks an erased model it has never seen.

    Args:
        encoder: The model's `TextEncoder`.
        concept_pairs: Prompts with the concept, and the same without.
        prompt: What to attack with.
        strength: η, how much of the concept is added.
        tokens: Words of the found prompt.
        population: Candidates of a generation.
        generations: Rounds of the search.
        seed: Of it.

    Source: arXiv 2310.10012, Eq. 2-4.
    """
    rng = np.random.default_rng(seed)
    with_, without = (encoder.encode([p[i] for p in concept_pairs]).meanings for i in (0, 1))
    target = encoder.encode([prompt]).meanings[0] + strength * (with_ - without).mean(0)
    words = vocabulary(encoder, 5000)

    def cost(candidates: list[list[int]]) -> np.ndarray:
        texts = [" ".join(words[i] for i in c) for c in candidates]
        rows = torch.cat([s.meanings for s in encoder.stream(texts, length=1)])
        return (rows - target).square().sum(1).numpy()

    pool = [rng.integers(0, len(words), tokens).tolist() for _ in range(population)]
    costs = cost(pool)
    for _ in range(generations):
        order = np.argsort(costs)[: population // 2]
        parents = [pool[i] for i in order]
        children: list[list[int]] = []
        while len(children) < population - len(parents):
            a, b = (parents[int(i)] for i in rng.integers(0, len(parents), 2))
            cut = int(rng.integers(1, tokens)) if tokens > 1 else 0
            child = [*a[:cut], *b[cut:]]
            if rng.random() < 0.5:
                child[int(rng.integers(0, tokens))] = int(rng.integers(0, len(words)))
            children.append(child)
        pool = parents + children
        costs = np.concatenate([costs[order], cost(children)])
    return " ".join(words[i] for i in pool[int(np.argmin(costs))])
