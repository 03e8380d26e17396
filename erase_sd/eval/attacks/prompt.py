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
from erase_sd.edit import LowRankEdit
from erase_sd.methods.rece import revival


@contextmanager
def _tokens_in_place(text_encoder: Any, embeddings: Tensor, at: int) -> Iterator[None]:
    """Put free embeddings, `(k, d)`, at positions `at`, … of whatever the text encoder reads."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        free = embeddings.to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([output[:, :at], free, output[:, at + len(embeddings) :]], dim=1)

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
    prefix: str = "",
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
        prefix: Words before the free embeddings; with one free token after "a photo of a" this is textual inversion.
        tokens: How many free embeddings stand before EOS.
        iterations: Gradient steps.
        lr: Adam's learning rate.
        batch: Noisy images a step.
        seed: Of the initial tokens, the noise and the time steps.

    Returns:
        `(1, L, d)` text states to pass as `prompt_embeds`.

    Raises:
        ValueError: If the pipeline has more than one text encoder.

    Source: UnlearnDiffAtk (arXiv 2310.11868), with embeddings instead of discrete tokens, which is stronger;
    textual inversion: arXiv 2208.01618, as an attack arXiv 2308.01508.
    """
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError("prompt attacks are for pipelines of one text encoder (SD 1.x, 2.x)")
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device sees the same numbers
    latents = _latents(pipe, images)
    device = latents.device
    inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    table = inner.embeddings.token_embedding.weight.detach().cpu()
    start = torch.randint(0, len(table) - 2, (tokens,), generator=generator)
    free = table[start].clone().float().to(device).requires_grad_(True)
    tokenizer = pipe.tokenizer
    eos = tokenizer.eos_token_id
    length = min(tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings)
    ids = torch.full((1, length), eos)
    words = tokenizer(prefix, add_special_tokens=False).input_ids if prefix else []
    head = torch.tensor([tokenizer.bos_token_id, *words])
    ids[0, : len(head)] = head
    ids[0, len(head) : len(head) + tokens] = start  # so that pooling finds EOS behind the free tokens
    ids = ids.to(device)
    optimizer = torch.optim.Adam([free], lr=lr)
    with _tokens_in_place(pipe.text_encoder, free, len(head)):
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
    return pipe.vae.encode(x.to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mean * pipe.vae.config.scaling_factor


def _denoising_loss(pipe: Any, latents: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
    """The loss that trained the model, on random images, noise and time steps, given text states."""
    batch, scheduler = len(states), pipe.scheduler
    pick = torch.randint(0, len(latents), (batch,), generator=generator)
    noise = torch.randn(latents[pick].shape, generator=generator).to(latents)
    t = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), generator=generator).to(latents.device)
    noisy = scheduler.add_noise(latents[pick], noise, t)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents[pick], noise, t)
    else:
        target = noise
    return F.mse_loss(pipe.unet(noisy, t, states).sample, target)


@contextmanager
def trainable(
    pipe: Any, images: Sequence[Image.Image], prompt: str, *, lr: float = 1e-4, batch: int = 8, seed: int = 0
) -> Iterator[Callable[[int], None]]:
    """Yield `train(steps)`, which fine-tunes the cross-attention keys and values on pictures with a prompt.

    The weights are put back at the end.

    Args:
        pipe: A Stable Diffusion pipeline, possibly erased.
        images: Pictures of the concept.
        prompt: Its prompt.
        lr: Adam's learning rate.
        batch: Noisy images a step.
        seed: Of noise and time steps.
    """
    from erase_sd.pipelines.live import LiveErasure

    generator = torch.Generator().manual_seed(seed)
    latents = _latents(pipe, images)
    parameters = list(LiveErasure.of(pipe).parameters.values())
    saved = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        states = pipe.encode_prompt(prompt, pipe.device, 1, False)[0].expand(batch, -1, -1)
    optimizer = torch.optim.Adam(parameters, lr=lr)

    def train(steps: int) -> None:
        for _ in range(steps):
            loss = _denoising_loss(pipe, latents, states, generator)
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


# -- attacks by name, as protocols ask for them -----------------------------------------------------

ATTACKS = ("paraphrase", "revival", "ring-a-bell", "prompt", "inversion", "fine-tuning")
STEPS = {"prompt": 40, "inversion": 200, "fine-tuning": 100}


@torch.no_grad()
def own_pictures(pipe: Any, concept: str, *, count: int = 8, steps: int = 20) -> list[Image.Image]:
    """The attacker's pictures of a concept: what the unedited model draws for it."""
    noise = [torch.Generator().manual_seed(90_000 + i) for i in range(count)]
    return list(pipe([f"a photo of a {concept}"] * count, generator=noise, num_inference_steps=steps).images)


@contextmanager
def attacked(
    pipe: Any,
    name: str,
    concept: str,
    prompt: str,
    *,
    pictures: Sequence[Image.Image],
    edit: LowRankEdit | None,
    original: Any = None,
) -> Iterator[Tensor | str]:
    """What to draw with while an attack by this name is on: a prompt, or `(1, L, d)` text states.

    Args:
        pipe: The pipeline with the erasure applied.
        name: One of `ATTACKS`. "paraphrase" is the prompt as it is, "revival" the closed-form embedding
            (RECE) of every state of it, "ring-a-bell" a search over real words, "prompt" five free
            embeddings, "inversion" one after "a photo of a", "fine-tuning" trains keys and values; for so many
            steps as `STEPS` says.
        concept: Its name.
        prompt: A prompt that means it.
        pictures: Of the concept, for attacks that learn.
        edit: The edit of the token states, if one is applied; the revival inverts it.
        original: The unedited pipeline, if `pipe` is not that one with an erasure applied live.

    Raises:
        ValueError: If there is no such attack.
    """
    from erase_sd.text import TextEncoder

    if name not in ATTACKS:
        raise ValueError(f"no attack {name!r}; there are {', '.join(ATTACKS)}")
    if name == "prompt":
        yield prompt_attack(pipe, pictures, iterations=STEPS[name])
    elif name == "inversion":
        yield prompt_attack(pipe, pictures, prefix="a photo of a", tokens=1, iterations=STEPS[name], lr=0.02)
    elif name == "fine-tuning":
        with trainable(pipe, pictures, prompt) as train:
            train(STEPS[name])
            yield prompt
    elif name == "ring-a-bell":
        pairs = [(t.format(concept), t.format("thing")) for t in ("a photo of a {}", "a picture of a {}", "a {}")]
        yield concept_prompts(TextEncoder.of(pipe), pairs, "a photo of a thing")
    elif name == "revival" and edit is not None:
        from erase_sd.erasure import weight_gram, weight_streams
        from erase_sd.pipelines.live import LiveErasure

        encoder = TextEncoder.of(pipe)
        weights = LiveErasure.of(original or pipe).originals()
        streams = weight_streams(encoder.architecture, weights, encoder.widths)
        gram = weight_gram(streams["tokens"], encoder.width)
        states = encoder.encode([prompt]).states[0].double()
        found = revival(edit, states, gram, rho=1e-6 * float(gram.trace()) / len(gram))
        yield torch.cat([states[:1], found[1:]]).to(pipe.unet.dtype)[None]
    else:
        yield prompt
