"""Free token embeddings, found by gradient: a white-box attack in the space between words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erase_sd.eval.attacks.target import Target
from erase_sd.pipelines.denoising import denoising_loss, latents_of


@contextmanager
def free_tokens(target: Target, steps: int | None = None) -> Iterator[Tensor]:
    """Five free embeddings (UnlearnDiffAtk's freedom); 40 gradient steps."""
    count = 40 if steps is None else steps
    yield prompt_attack(target.pipe, target.pictures, iterations=count, seed=target.seed)


@contextmanager
def inversion(target: Target, steps: int | None = None) -> Iterator[Tensor]:
    """One free embedding after "a photo of a" (textual inversion); 200 gradient steps."""
    count = 200 if steps is None else steps
    yield prompt_attack(
        target.pipe,
        target.pictures,
        prefix="a photo of a",
        tokens=1,
        iterations=count,
        lr=0.02,
        seed=target.seed,
    )


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
        prefix: Words before the free embeddings; with one free token after "a photo of a" this is
            textual inversion.
        tokens: How many free embeddings stand before EOS.
        iterations: Gradient steps.
        lr: Adam's learning rate.
        batch: Noisy images a step.
        seed: Of the initial tokens, the noise and the time steps.

    Returns:
        `(1, L, d)` text states to pass as `prompt_embeds`.

    Raises:
        ValueError: If the pipeline has more than one text encoder.

    Source: UnlearnDiffAtk (arXiv 2310.11868), with embeddings instead of discrete tokens, which is
    stronger; textual inversion: arXiv 2208.01618, as an attack arXiv 2308.01508.
    """
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError("prompt attacks are for pipelines of one text encoder (SD 1.x, 2.x)")
    # On the CPU, so that every device sees the same numbers.
    generator = torch.Generator().manual_seed(seed)
    latents = latents_of(pipe, images)
    inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    table = inner.embeddings.token_embedding.weight.detach().cpu()
    start = torch.randint(0, len(table) - 2, (tokens,), generator=generator)
    free = table[start].clone().float().to(latents.device).requires_grad_(True)
    ids, at = prompt_ids(pipe, prefix, start)
    ids = ids.to(latents.device)
    optimizer = torch.optim.Adam([free], lr=lr)
    with tokens_in_place(pipe.text_encoder, free, at):
        for _ in range(iterations):
            states = pipe.text_encoder(ids).last_hidden_state.expand(batch, -1, -1)
            loss = denoising_loss(pipe, latents, states, generator)
            (gradient,) = torch.autograd.grad(loss, free)
            free.grad = gradient  # of the free tokens only: the networks gather none
            optimizer.step()
        with torch.no_grad():
            found: Tensor = pipe.text_encoder(ids).last_hidden_state
    return found


def prompt_ids(pipe: Any, before: str, own: Tensor, after: str = "") -> tuple[Tensor, int]:
    """Ids `(1, L)` of BOS, words, an attacker's tokens, words and EOS; where his tokens begin.

    Args:
        pipe: The pipeline whose tokenizer it is.
        before: Words before the tokens.
        own: `(k,)` ids to stand in their place, so that pooling finds EOS behind them.
        after: Words behind them; what does not fit is cut.
    """
    tokenizer = pipe.tokenizer
    length = min(tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings)
    words = [
        tokenizer(text, add_special_tokens=False).input_ids if text else []
        for text in (before, after)
    ]
    told = torch.tensor([tokenizer.bos_token_id, *words[0], *own.tolist(), *words[1]])
    ids = torch.full((1, length), tokenizer.eos_token_id)
    ids[0, : len(told)] = told[: length - 1]
    return ids, 1 + len(words[0])


@contextmanager
def tokens_in_place(text_encoder: Any, embeddings: Tensor, at: int) -> Iterator[None]:
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
