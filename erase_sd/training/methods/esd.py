"""ESD: what the model says of the concept becomes what it says without it, and a step beyond."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erase_sd.algebra.options import within
from erase_sd.training.bench import Bench
from erase_sd.training.lesson import Layers, Lesson, Options, copies, moving


@dataclass(frozen=True)
class EsdOptions(Options):
    """Options of ESD; the defaults are the paper's and its first code's.

    Attributes:
        eta: How far beyond the empty prompt's prediction the target lies.
        start_guidance: Guidance of the latents that it trains on.
        way: Denoising steps of a whole picture.

    >>> EsdOptions().eta
    1.0
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1
    eta: float = 1.0
    start_guidance: float = 3.0
    way: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        within("eta", self.eta, 0)
        within("way", self.way, 1)


def esd_x(bench: Bench, options: EsdOptions) -> Lesson:
    """ESD of the cross-attention layers: forgets what a prompt names."""
    return _esd(bench, options, "cross-attention")


def esd_u(bench: Bench, options: EsdOptions) -> Lesson:
    """ESD of all other layers: forgets also what no prompt names."""
    return _esd(bench, options, "other")


def target_of(empty: Tensor, concept: Tensor, eta: float) -> Tensor:
    """What the concept's prediction should become: `ε₀ − η (ε_c − ε₀)`.

    All are the original's, in whatever the network predicts: the coefficients sum to one, so noise
    and velocity ask for the same picture.

    Args:
        empty: `(n, c, h, w)` for the empty prompt.
        concept: `(n, c, h, w)` for the concept.
        eta: Strength.

    Source: arXiv 2303.07345, Eq. 7.

    >>> target_of(torch.tensor(1.0), torch.tensor(3.0), 1.0).item()
    -1.0
    """
    return empty - eta * (concept - empty)


def _esd(bench: Bench, options: EsdOptions, layers: Layers) -> Lesson:
    parameters = moving(bench.network, layers)
    original = copies(parameters)
    concept, null = bench.states(bench.task.forget), bench.states([""])

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(0, len(concept), (options.batch,), generator=generator)
        told = concept[pick]
        # As in the paper, the latents are on the way of the model as it is being trained.
        x, t = bench.on_the_way(told, null, options.way, options.start_guidance, generator)
        with torch.no_grad():
            asked = torch.cat([null.expand_as(told), told])
            empty, named = bench.predict(torch.cat([x, x]), t, asked, original).chunk(2)
        return F.mse_loss(bench.predict(x, t, told), target_of(empty, named, options.eta))

    return Lesson(parameters, loss, lambda: copies(parameters))
