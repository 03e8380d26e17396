"""SCRUB: away from the original on what is forgotten, towards it on the rest.

Source: arXiv 2302.09880.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase_sd.vision.cache import Run
from erase_sd.vision.methods.relabel import common
from erase_sd.vision.task import Task
from erase_sd.vision.train import cross_entropy, train


@dataclass(frozen=True)
class Scrub:
    """Options of `scrub`.

    Attributes:
        epochs: Passes over what is retained.
        forget_epochs: How many of them begin with a pass over what is forgotten.
        lr: Learning rate.
        alpha: Weight of the divergence on what is retained.
        gamma: Weight of the labels there.
        temperature: Of both distributions.
    """

    epochs: int = 3
    forget_epochs: int = 2
    lr: float = 5e-4
    alpha: float = 1e-3
    gamma: float = 0.99
    temperature: float = 4.0


def scrub(model: nn.Module, task: Task, options: Scrub, run: Run) -> nn.Module:
    """Alternate max-KL on what is forgotten with labels and min-KL on the rest."""
    new, teacher = copy.deepcopy(model), copy.deepcopy(model).eval()
    heat = options.temperature

    def divergence(out: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            told = F.log_softmax(teacher(x).float() / heat, 1)
        mine = F.log_softmax(out.float() / heat, 1)
        return F.kl_div(mine, told, reduction="batchmean", log_target=True) * heat**2

    def away(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return -divergence(out, x)

    def towards(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return options.gamma * cross_entropy(out, y, x) + options.alpha * divergence(out, x)

    recipe = common(1, options.lr, 64)
    for epoch in range(options.epochs):
        if epoch < options.forget_epochs:
            train(new, task.forget, recipe, away, seed=run.seed + epoch)
        train(new, task.retain, recipe, towards, seed=run.seed + epoch)
    return new
