"""Forget-Me-Not: attention that goes to the concept's tokens is trained to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from erase_sd.pipelines.denoising import noised
from erase_sd.training.bench import Bench, in_sentences
from erase_sd.training.lesson import DrawnOptions, Lesson, copies, moving


@dataclass(frozen=True)
class FmnOptions(DrawnOptions):
    """Options of Forget-Me-Not; the defaults are its code's, without textual inversion.

    Attributes:
        layers: What moves; the paper's text has cross-attention, its configuration file all.
        eos: Whether the end of the prompt, and padding of the same token, counts as the concept.
    """

    steps: int = 35
    lr: float = 2e-6
    batch: int = 1
    images: int = 8
    layers: Literal["cross-attention", "all"] = "cross-attention"
    eos: bool = True


def fmn(bench: Bench, options: FmnOptions) -> Lesson:
    """Forget-Me-Not on pictures of the concept."""
    prompts = in_sentences(bench.task.forget)
    latents = bench.concept_pictures(prompts, options.images, options.draw_steps)
    states = bench.states(prompts)
    rows = [
        positions(bench.pipe.tokenizer, sentence, concept, eos=options.eos)
        for sentence, concept in zip(prompts, bench.task.forget, strict=True)
    ]
    places = torch.stack(rows).to(bench.pipe.device)
    parameters = moving(bench.network, options.layers)
    maps: list[Tensor] = []
    hooks = [watch(m, maps) for n, m in bench.network.named_modules() if n.endswith("attn2")]

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(0, len(states), (options.batch,), generator=generator)
        drawn = torch.randint(0, len(latents), (options.batch,), generator=generator)
        x, _, t = noised(bench.scheduler, latents[drawn], generator)
        maps.clear()
        bench.predict(x, t, states[pick])
        total = attention_loss(maps, places[pick])
        maps.clear()
        return total

    def close() -> None:
        for hook in hooks:
            hook.remove()

    return Lesson(
        parameters, loss, lambda: copies(parameters), weight_decay=0.01, clip=1.0, close=close
    )


def attention_loss(maps: Sequence[Tensor], places: Tensor) -> Tensor:
    """The squared norm of the attention that goes to some tokens, over all layers, a sample.

    Its code has the norm, which clipping and Adam make almost the same.

    Args:
        maps: Of each layer, `(n · heads, pixels, L)`, a sample's heads together.
        places: `(n, L)`, whether a token is the concept's.

    Source: arXiv 2303.17591, section 3.2.

    >>> attention_loss([torch.ones(2, 3, 2)], torch.tensor([[True, False]])).item()
    6.0
    """
    total = torch.zeros((), device=places.device)
    for probabilities in maps:
        chosen = places.repeat_interleave(len(probabilities) // len(places), 0)[:, None]
        total = total + (probabilities.float() * chosen).square().sum()
    return total / len(places)


def watch(attention: Any, maps: list[Tensor]) -> Any:
    """Keep a cross-attention layer's maps whenever it runs; returns a handle to stop it.

    Args:
        attention: A module of diffusers' `Attention`.
        maps: Grows by `(n · heads, pixels, L)` at each call.
    """

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query = module.head_to_batch_dim(module.to_q(args[0]))
        key = module.head_to_batch_dim(module.to_k(kwargs["encoder_hidden_states"]))
        maps.append(module.get_attention_scores(query, key))

    return attention.register_forward_pre_hook(look, with_kwargs=True)


def positions(tokenizer: Any, sentence: str, concept: str, *, eos: bool) -> Tensor:
    """Which of a sentence's tokens are the concept's, `(L,)`.

    Raises:
        ValueError: If the sentence does not hold them whole.
    """
    length = tokenizer.model_max_length
    ids = tokenizer(sentence, padding="max_length", max_length=length, truncation=True).input_ids
    own = tokenizer(concept, add_special_tokens=False).input_ids
    found = torch.zeros(len(ids), dtype=torch.bool)
    for i in range(len(ids) - len(own) + 1):
        if ids[i : i + len(own)] == own:
            found[i : i + len(own)] = True
    if not bool(found.any()):
        raise ValueError(f"expected the tokens of {concept!r} in {sentence!r}, found none")
    if eos:
        found |= torch.tensor(ids) == tokenizer.eos_token_id
    return found
