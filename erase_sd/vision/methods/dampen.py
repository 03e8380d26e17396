"""Without training on labels.

SSD dampens weights, JiT smooths the function around the forget samples.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erase_sd.vision.cache import Run
from erase_sd.vision.methods.relabel import common
from erase_sd.vision.samples import Samples
from erase_sd.vision.task import Task
from erase_sd.vision.train import Loop, gradient, moving_parameters, train


@dataclass(frozen=True)
class SSD:
    """Options of `ssd`: how many times more a weight must matter to be dampened, and λ."""

    alpha: float = 10.0
    dampening: float = 1.0


@torch.no_grad()
def ssd(model: nn.Module, task: Task, options: SSD, run: Run) -> nn.Module:
    """Selective synaptic dampening: where `I_f > α I_D`, `θ ← θ min(λ I_D / I_f, 1)`.

    Source: arXiv 2308.07707.
    """
    new = copy.deepcopy(model)
    of_forget = importances(model, task.forget)
    of_all = importances(model, task.forget.joined(task.retain))
    for p, f, d in zip(moving_parameters(new), of_forget, of_all, strict=True):
        factor = (options.dampening * d / f.clamp(min=1e-30)).clamp(max=1)
        p.copy_(torch.where(f > options.alpha * d, p * factor, p))
    return new


def importances(model: nn.Module, samples: Samples, *, batch: int = 64) -> list[Tensor]:
    """Mean squared gradient of mini-batches: SSD's diagonal Fisher."""
    total = [torch.zeros_like(p) for p in moving_parameters(model)]
    parts = torch.split(torch.arange(len(samples)), batch)
    for index in parts:
        for t, g in zip(total, gradient(model, samples[index]), strict=True):
            t += g.square() / len(parts)
    return total


@dataclass(frozen=True)
class JiT:
    """Options of `jit`.

    Attributes:
        lr: Learning rate.
        noise: Standard deviation of the draws.
        draws: For each sample.
        epochs: Passes.
        batch: Samples a step.
    """

    lr: float = 1e-3
    noise: float = 0.8
    draws: int = 25
    epochs: int = 1
    batch: int = 64


def jit(model: nn.Module, task: Task, options: JiT, run: Run) -> nn.Module:
    """Just in time: make the function smooth around forget samples. Source: arXiv 2402.01401.

    Minimises the mean of `‖f(x) − sg f(x + e)‖ / ‖e‖` over Gaussian draws `e`. The source's code
    sums over the batch where this takes the mean, has no momentum, and clamps `x + e` to the
    batch's range: its learning rates are not these.
    """
    new = copy.deepcopy(model)
    generator = run.generator()

    def loss(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
        total = out.new_zeros(())
        for _draw in range(options.draws):
            e = options.noise * torch.randn(x.shape, generator=generator).to(x)
            with torch.no_grad():
                moved = new(x + e)
            apart = (out - moved).flatten(1).norm(dim=1) / e.flatten(1).norm(dim=1)
            total = total + apart.mean() / options.draws
        return total

    recipe = common(options.epochs, options.lr, options.batch)
    return train(new, task.forget, recipe, loss, seed=run.seed, loop=Loop(train_mode=False))
