"""SalUn: the weights that matter most to the concept learn to draw something else of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from erase_sd.algebra.options import within
from erase_sd.pipelines.denoising import noised
from erase_sd.training.bench import Bench, in_sentences
from erase_sd.training.lesson import DrawnOptions, Lesson, copies, moving


@dataclass(frozen=True)
class SalunOptions(DrawnOptions):
    """Options of SalUn for diffusion; the defaults are those of its class-wise forgetting.

    Five epochs of 800 pictures in batches of eight are 500 steps.

    Attributes:
        layers: What moves.
        share: Share of the weights that are salient.
        alpha: Weight of the denoising loss on what is kept.
        mask_guidance: Guidance within the loss whose gradient is the saliency.
    """

    steps: int = 500
    lr: float = 1e-5
    batch: int = 8
    images: int = 800
    layers: Literal["all", "cross-attention"] = "all"
    share: float = 0.5
    alpha: float = 0.5
    mask_guidance: float = 7.5

    def __post_init__(self) -> None:
        super().__post_init__()
        within("share", self.share, 0, 1)
        within("alpha", self.alpha, 0)


def salun(bench: Bench, options: SalunOptions) -> Lesson:
    """SalUn with pictures of the concept and of what is kept.

    Raises:
        ValueError: Without a prompt to keep.
    """
    task = bench.task
    if not task.retain:
        raise ValueError("salun trains on what is kept as well; give at least one --retain")
    keep = in_sentences(task.retain)
    toward = in_sentences([task.retain[0] if task.toward is None else task.toward])
    forget = in_sentences(task.forget)
    concept = bench.concept_pictures(forget, options.images, options.draw_steps)
    kept = bench.pictures_of(keep, options.images, options.draw_steps)
    own, other, kept_states = bench.states(forget), bench.states(toward), bench.states(keep)
    parameters = moving(bench.network, options.layers)
    masks = salient(saliency(bench, concept, own, parameters, options), options.share)

    def loss(generator: torch.Generator) -> Tensor:
        drawn = torch.randint(0, len(concept), (options.batch,), generator=generator)
        x, _, t = noised(bench.scheduler, concept[drawn], generator)
        with torch.no_grad():  # the model as it is now, on the same noisy picture
            target = bench.predict(x, t, other.expand(options.batch, -1, -1))
        forgotten = F.mse_loss(bench.predict(x, t, own[drawn % len(own)]), target)
        index = torch.randint(0, len(kept), (options.batch,), generator=generator)
        y, wanted, s = noised(bench.scheduler, kept[index], generator)
        retained = F.mse_loss(bench.predict(y, s, kept_states[index % len(keep)]), wanted)
        return forgotten + options.alpha * retained

    return Lesson(parameters, loss, lambda: copies(parameters), masks=masks)


def saliency(
    bench: Bench,
    latents: Tensor,
    states: Tensor,
    parameters: Mapping[str, nn.Parameter],
    options: SalunOptions,
) -> dict[str, Tensor]:
    """Magnitude of the summed gradient of the guided denoising loss, over the pictures once.

    Args:
        bench: The model, not trained yet.
        latents: `(n, c, h, w)` of the concept.
        states: `(m, L, d)` of its prompts; picture `i` has prompt `i % m`.
        parameters: What may move.
        options: Batch size and guidance.
    """
    generator = torch.Generator().manual_seed(bench.seed)
    null = bench.states([""])
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for start in tqdm(range(0, len(latents), options.batch), desc="saliency", delay=2, leave=False):
        index = torch.arange(start, min(start + options.batch, len(latents)))
        x, target, t = noised(bench.scheduler, latents[index], generator)
        told = states[index % len(states)]
        named, empty = (bench.predict(x, t, s) for s in (told, null.expand_as(told)))
        guided = (1 + options.mask_guidance) * named - options.mask_guidance * empty
        values = list(parameters.values())
        found = torch.autograd.grad(F.mse_loss(guided, target), values, allow_unused=True)
        for name, g in zip(parameters, found, strict=True):
            if g is not None:
                total[name] += g
    return {name: g.abs_() for name, g in total.items()}


def salient(magnitudes: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks of the largest entries, ranked over all tensors together.

    Of entries that equal the smallest salient one none is taken, so a mask never takes too many.

    Args:
        magnitudes: Not negative, by name.
        share: Share to take, 0..1.

    Source: arXiv 2310.12508, Eq. 3.

    >>> salient({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([0.5, 2.0])}, 0.5)
    {'a': tensor([ True, False]), 'b': tensor([False,  True])}
    """
    flat = torch.cat([m.flatten() for m in magnitudes.values()])
    left_out = len(flat) - int(len(flat) * share)
    if left_out == 0:
        return {name: torch.ones_like(m, dtype=torch.bool) for name, m in magnitudes.items()}
    bar = flat.kthvalue(left_out).values
    return {name: m > bar for name, m in magnitudes.items()}
