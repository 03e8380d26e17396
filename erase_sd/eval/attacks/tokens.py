"""Tokens of the vocabulary before the prompt, found by gradient: a white-box attack in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from erase_sd.eval.attacks.prompt import prompt_ids, tokens_in_place
from erase_sd.eval.attacks.target import Target
from erase_sd.pipelines.denoising import denoising_loss, latents_of

_CANDIDATES = 8  # rounded prompts that are compared at the end


@contextmanager
def real_tokens(target: Target, steps: int | None = None) -> Iterator[Tensor]:
    """Five tokens of the vocabulary before the prompt (UnlearnDiffAtk); 40 gradient steps."""
    search = Search(iterations=40 if steps is None else steps, seed=target.seed)
    yield token_attack(target.pipe, target.pictures, target.prompt, search)


@dataclass(frozen=True)
class Search:
    """How tokens are searched.

    Attributes:
        tokens: How many.
        iterations: Gradient steps.
        lr: Adam's learning rate, of the distributions over the vocabulary.
        batch: Noisy images a step.
        seed: Of the first tokens, the noise and the time steps.
    """

    tokens: int = 5
    iterations: int = 40
    lr: float = 0.1
    batch: int = 8
    seed: int = 0


def token_attack(
    pipe: Any, images: Sequence[Image.Image], prompt: str, search: Search | None = None
) -> Tensor:
    """Find tokens that make a (possibly erased) pipeline draw some images' concept again.

    Each token is a distribution over the vocabulary, improved by projected gradient steps on the
    denoising loss; rounded in the end. Of the last rounded prompts the best one counts.

    Args:
        pipe: A Stable Diffusion pipeline; its weights are not changed.
        images: Pictures of the concept.
        prompt: Stands behind the tokens.
        search: How.

    Returns:
        `(1, L, d)` text states to pass as `prompt_embeds`.

    Raises:
        ValueError: If the pipeline has more than one text encoder.

    Source: UnlearnDiffAtk (arXiv 2310.11868), with TextGrad's relaxation.
    """
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError("token attacks are for pipelines of one text encoder (SD 1.x, 2.x)")
    latents = latents_of(pipe, images)
    search = search or Search()
    found = _searched(pipe, latents, prompt, search)
    batch = 4 * search.batch

    @torch.no_grad()
    def drawn(chosen: tuple[int, ...]) -> tuple[float, Tensor]:
        ids, _ = prompt_ids(pipe, "", torch.tensor(chosen), prompt)
        states = pipe.text_encoder(ids.to(latents.device)).last_hidden_state
        same = torch.Generator().manual_seed(search.seed)  # all candidates see one noise
        return float(denoising_loss(pipe, latents, states.expand(batch, -1, -1), same)), states

    return min((drawn(chosen) for chosen in found), key=lambda pair: pair[0])[1]


def _searched(pipe: Any, latents: Tensor, prompt: str, search: Search) -> list[tuple[int, ...]]:
    """The last rounded prompts of a search, newest first, each once."""
    # On the CPU, so that every device sees the same numbers.
    generator = torch.Generator().manual_seed(search.seed)
    inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    table = inner.embeddings.token_embedding.weight.detach()
    words = table[: len(table) - 2].float()  # BOS and EOS are no words
    share = torch.rand(search.tokens, len(words), generator=generator).to(words.device)
    share = on_simplex(share).requires_grad_(True)
    optimizer = torch.optim.Adam([share], lr=search.lr)
    start, at = prompt_ids(pipe, "", share.argmax(1), prompt)
    start = start.to(latents.device)
    seen = [tuple(share.argmax(1).tolist())]
    for _ in range(search.iterations):
        with tokens_in_place(pipe.text_encoder, share @ words, at):
            states = pipe.text_encoder(start).last_hidden_state.expand(search.batch, -1, -1)
            loss = denoising_loss(pipe, latents, states, generator)
            (share.grad,) = torch.autograd.grad(loss, share)
        optimizer.step()
        with torch.no_grad():
            share.copy_(on_simplex(share))
        seen.append(tuple(share.argmax(1).tolist()))
    return list(dict.fromkeys(reversed(seen)))[:_CANDIDATES]


def on_simplex(rows: Tensor) -> Tensor:
    """The nearest distributions to some rows, `(n, v)`: no entry below 0, each sum 1.

    Source: Duchi et al., "Efficient projections onto the l1-ball", 2008, figure 1.

    >>> on_simplex(torch.tensor([[0.5, 1.5, -1.0]]))
    tensor([[0., 1., 0.]])
    """
    ordered = rows.sort(dim=1, descending=True).values
    above = ordered.cumsum(1) - 1
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    last = (ordered > above / count).sum(1, keepdim=True)
    return (rows - above.gather(1, last - 1) / last).clamp(min=0)
