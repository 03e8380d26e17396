"""LECO: a LoRA that takes the concept's own guidance away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase_sd.algebra.options import within
from erase_sd.training.bench import Bench
from erase_sd.training.lesson import Lesson, Options


@dataclass(frozen=True)
class LecoOptions(Options):
    """Options of LECO; the defaults are those of its example configurations.

    Attributes:
        rank: Of the LoRA.
        alpha: Of the LoRA; its scale is `alpha / rank`.
        guidance: How far beyond the neutral prompt's prediction the target lies.
        start_guidance: Guidance of the latents that it trains on.
        way: Denoising steps of a whole picture.
    """

    steps: int = 500
    lr: float = 1e-4
    batch: int = 1
    rank: int = 4
    alpha: float = 1.0
    guidance: float = 1.0
    start_guidance: float = 3.0
    way: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        within("rank", self.rank, 1)
        within("way", self.way, 1)


def leco(bench: Bench, options: LecoOptions) -> Lesson:
    """LECO on all linear layers of self- and cross-attention."""
    bench.network.requires_grad_(False)
    lora = Lora(bench.network, options, bench.seed)
    concept, null = bench.states(bench.task.forget), bench.states([""])
    neutral = null if bench.task.toward is None else bench.states([bench.task.toward])

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(0, len(concept), (options.batch,), generator=generator)
        told = concept[pick]
        with torch.no_grad():
            x, t = bench.on_the_way(
                told, null, options.way, options.start_guidance, generator, lora.merged()
            )
            asked = torch.cat([told, null.expand_as(told), neutral.expand_as(told)])
            named, empty, plain = bench.predict(torch.cat([x] * 3), t, asked).chunk(3)
        wanted = target_of(plain, named, empty, options.guidance)
        return F.mse_loss(bench.predict(x, t, told, lora.merged()), wanted)

    return Lesson(
        lora.parameters,
        loss,
        lambda: {name: w.detach() for name, w in lora.merged().items()},
        weight_decay=0.01,
        factors=lora.factors,
    )


def target_of(neutral: Tensor, concept: Tensor, empty: Tensor, guidance: float) -> Tensor:
    """What the concept's prediction should become: `ε_n − g (ε_c − ε₀)`, all the original's.

    Args:
        neutral: `(n, c, h, w)` for the prompt that stands in its place.
        concept: `(n, c, h, w)` for the concept.
        empty: `(n, c, h, w)` for the empty prompt.
        guidance: Strength.

    >>> target_of(torch.tensor(1.0), torch.tensor(3.0), torch.tensor(1.0), 1.0).item()
    -1.0
    """
    return neutral - guidance * (concept - empty)


class Lora:
    """Factors beside the linear layers of attention; the network itself is not touched.

    Args:
        network: A denoiser of diffusers.
        options: Rank and alpha.
        seed: Of the down factors; the up factors begin at zero.

    Raises:
        ValueError: If it has no attention.
    """

    def __init__(self, network: nn.Module, options: LecoOptions, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.base: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear) and {"attn1", "attn2"} & set(name.split(".")):
                weight, rank = module.weight, options.rank
                bound = 1 / math.sqrt(weight.shape[1])  # what torch gives a linear layer
                down = (torch.rand((rank, weight.shape[1]), generator=generator) * 2 - 1) * bound
                self.base[name] = weight
                self.parameters[f"{name}.down"] = nn.Parameter(down.to(weight))
                self.parameters[f"{name}.up"] = nn.Parameter(weight.new_zeros(len(weight), rank))
        if not self.base:
            raise ValueError(f"expected attention layers in {type(network).__name__}, found none")
        self.scale = options.alpha / options.rank

    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """`(down (r, d_in), up (d_out, r))` by module, the scale in `up`."""
        return {
            name: (self.parameters[f"{name}.down"], self.parameters[f"{name}.up"] * self.scale)
            for name in self.base
        }

    def merged(self) -> dict[str, Tensor]:
        """The weights with the LoRA in them, by name; gradients flow to the factors."""
        found = self.factors()
        return {f"{n}.weight": w + found[n][1] @ found[n][0] for n, w in self.base.items()}
