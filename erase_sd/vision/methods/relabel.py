"""Ascent, fine-tuning and new labels: FT, GA, RL, SalUn, ℓ1-sparse.

The common loop is that of SalUn's code: SGD, learning rate 0.01, momentum 0.9, weight decay 5e-4,
10 epochs of batches of 256.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from erase_sd.vision.cache import Run
from erase_sd.vision.task import Task
from erase_sd.vision.train import Loop, Recipe, cross_entropy, gradient, moving_parameters, train


def common(epochs: int, lr: float, batch: int = 256) -> Recipe:
    """SalUn's loop."""
    return Recipe(epochs=epochs, lr=lr, batch=batch, schedule="constant")


@dataclass(frozen=True)
class FineTune:
    """Options of `finetune`: passes and learning rate."""

    epochs: int = 10
    lr: float = 0.01


def finetune(model: nn.Module, task: Task, options: FineTune, run: Run) -> nn.Module:
    """FT: cross entropy on what is retained."""
    recipe = common(options.epochs, options.lr)
    return train(copy.deepcopy(model), task.retain, recipe, seed=run.seed)


@dataclass(frozen=True)
class Ascent:
    """Options of `gradient_ascent`: passes and learning rate."""

    epochs: int = 5
    lr: float = 1e-4


def gradient_ascent(model: nn.Module, task: Task, options: Ascent, run: Run) -> nn.Module:
    """GA: minus the cross entropy on what is forgotten."""
    recipe = common(options.epochs, options.lr)
    new = copy.deepcopy(model)
    return train(new, task.forget, recipe, lambda o, y, x: -cross_entropy(o, y, x), seed=run.seed)


@dataclass(frozen=True)
class RandomLabel:
    """Options of `random_label`: passes and learning rate."""

    epochs: int = 10
    lr: float = 0.01


def random_label(model: nn.Module, task: Task, options: RandomLabel, run: Run) -> nn.Module:
    """RL: forget samples labelled anew at random in each epoch, together with the retained ones."""
    return _relabelled(model, task, common(options.epochs, options.lr), run, None)


def _relabelled(
    model: nn.Module, task: Task, recipe: Recipe, run: Run, masks: list[Tensor] | None
) -> nn.Module:
    """Random labels; with masks, whatever they leave out is put back after each step.

    Momentum included.
    """
    new, both = copy.deepcopy(model), task.forget.joined(task.retain)
    generator = run.generator(1)
    count = len(task.forget)

    def relabel(epoch: int) -> Tensor:
        labels = both.y.clone()
        labels[:count] = torch.randint(task.outputs, (count,), generator=generator)
        return labels

    old = [p.detach().clone() for p in moving_parameters(new)]

    @torch.no_grad()
    def restore(optimizer: Any) -> None:
        for p, o, m in zip(moving_parameters(new), old, masks or [], strict=True):
            p.copy_(torch.where(m, p, o))
            buffer = optimizer.state[p].get("momentum_buffer")
            if buffer is not None:
                buffer.mul_(m)

    loop = Loop(relabel=relabel, after_step=restore if masks else None)
    return train(new, both, recipe, seed=run.seed, loop=loop)


def saliency(model: nn.Module, task: Task, share: float) -> list[Tensor]:
    """SalUn's masks: the weights with the largest gradients over the forget samples."""
    if not 0 < share <= 1:
        raise ValueError(f"expected a share in (0, 1], got {share}")
    size = [g.abs() for g in gradient(model, task.forget)]
    flat = torch.cat([s.flatten() for s in size])
    if share == 1:
        return [torch.ones_like(s, dtype=torch.bool) for s in size]
    bar = flat.kthvalue(max(1, round((1 - share) * len(flat)))).values
    return [s > bar for s in size]


@dataclass(frozen=True)
class SalUn:
    """Options of `salun`: passes, learning rate, and the share of weights that move."""

    epochs: int = 10
    lr: float = 0.01
    share: float = 0.5


def salun(model: nn.Module, task: Task, options: SalUn, run: Run) -> nn.Module:
    """Random labels, moving only the weights most salient for the forget samples.

    Source: arXiv 2310.12508.
    """
    masks = saliency(model, task, options.share)
    return _relabelled(model, task, common(options.epochs, options.lr), run, masks)


@dataclass(frozen=True)
class Sparse:
    """Options of `l1_sparse`: passes, learning rate, and the first weight of the penalty."""

    epochs: int = 10
    lr: float = 0.01
    gamma: float = 5e-5


def l1_sparse(model: nn.Module, task: Task, options: Sparse, run: Run) -> nn.Module:
    """Fine-tuning with an ℓ1 penalty that falls to zero. Source: arXiv 2304.04934."""
    new = copy.deepcopy(model)
    recipe = common(options.epochs, options.lr)
    steps = max(1, -(-len(task.retain) // recipe.batch))
    done = [0]

    def count(optimizer: Any) -> None:
        done[0] += 1

    def loss(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
        epoch = done[0] // steps
        weight = options.gamma * (1 - epoch / options.epochs)
        penalty = torch.stack([p.abs().sum() for p in moving_parameters(new)]).sum()
        return cross_entropy(out, y, x) + weight * penalty

    return train(new, task.retain, recipe, loss, seed=run.seed, loop=Loop(after_step=count))
