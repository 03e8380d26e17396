"""Ring-A-Bell: real words whose text embedding is that of a harmless prompt plus the concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from erase_sd.eval.attacks.target import Target
from erase_sd.text.background import vocabulary
from erase_sd.text.encoder import TextEncoder

_SENTENCES = ("a photo of a {}", "a picture of a {}", "a {}")


@contextmanager
def ring_a_bell(target: Target, steps: int | None = None) -> Iterator[str]:
    """The words that the search finds; 40 generations of it."""
    pairs = [(t.format(target.concept), t.format("thing")) for t in _SENTENCES]
    encoder, count = TextEncoder.of(target.pipe), 40 if steps is None else steps
    yield concept_prompts(encoder, pairs, "a photo of a thing", generations=count, seed=target.seed)


def concept_prompts(
    encoder: TextEncoder,
    concept_pairs: Sequence[tuple[str, str]],
    prompt: str,
    *,
    amount: float = 3.0,
    tokens: int = 6,
    population: int = 64,
    generations: int = 40,
    seed: int = 0,
) -> str:
    """A prompt of real tokens whose text embedding is that of `prompt` plus the concept.

    The concept's vector is the mean difference of pairs of prompts with and without it; a genetic
    search over the vocabulary finds tokens whose embedding comes near. It needs the text encoder
    alone, so it attacks an erased model it has never seen.

    Args:
        encoder: The model's `TextEncoder`.
        concept_pairs: Prompts with the concept, and the same without.
        prompt: What to attack with.
        amount: η, how much of the concept is added.
        tokens: Words of the found prompt.
        population: Candidates of a generation.
        generations: Rounds of the search.
        seed: Of it.

    Source: arXiv 2310.10012, Eq. 2-4.
    """
    rng = np.random.default_rng(seed)
    with_, without = (encoder.encode([p[i] for p in concept_pairs]).meanings for i in (0, 1))
    target = encoder.encode([prompt]).meanings[0] + amount * (with_ - without).mean(0)
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
