"""Boundary unlearning: expand to a shadow class, or shrink to the nearest other one.

Source: arXiv 2303.11570.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase_sd.vision.cache import Run
from erase_sd.vision.layers import evaluating, layers
from erase_sd.vision.methods.relabel import common
from erase_sd.vision.samples import Samples, at_once
from erase_sd.vision.task import Task
from erase_sd.vision.train import logits, on, train


@dataclass(frozen=True)
class Expanding:
    """Options of `boundary_expanding`: passes and learning rate."""

    epochs: int = 10
    lr: float = 0.01


def boundary_expanding(model: nn.Module, task: Task, options: Expanding, run: Run) -> nn.Module:
    """BE: one more output, freshly initialised, takes the forget samples and is cut off.

    Raises:
        ValueError: If the layer that runs last does not give one output for each class.
    """
    new = copy.deepcopy(model)
    last = layers(new, "last", task.forget.x)[0]
    old = last.module
    if not isinstance(old, nn.Linear) or old.out_features != task.outputs:
        raise ValueError(f"{last.name} does not give one output for each class: nothing to expand")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        wide = nn.Linear(old.in_features, old.out_features + 1, bias=old.bias is not None)
    wide = wide.to(old.weight)
    with torch.no_grad():
        wide.weight[:-1] = old.weight
        if old.bias is not None:
            wide.bias[:-1] = old.bias
    _replace(new, last.name, wide)
    shadow = task.forget.relabelled(torch.full_like(task.forget.y, old.out_features))
    train(new, shadow, common(options.epochs, options.lr), seed=run.seed)
    narrow = copy.deepcopy(old)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:-1])
        if old.bias is not None:
            narrow.bias.copy_(wide.bias[:-1])
    _replace(new, last.name, narrow)
    return new


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@dataclass(frozen=True)
class Shrink:
    """Options of `boundary_shrink`: passes, learning rate, and how far the signed step goes."""

    epochs: int = 10
    lr: float = 0.01
    bound: float = 0.1


def boundary_shrink(model: nn.Module, task: Task, options: Shrink, run: Run) -> nn.Module:
    """BS: forget samples take the nearest other class, found by one signed gradient step.

    `x' = x + 0.1 sign ∇ CE`; inputs are normalised here, so nothing is clamped but to their own
    range.
    """
    near = nearest(model, task.forget, options.bound)
    recipe = common(options.epochs, options.lr)
    return train(copy.deepcopy(model), task.forget.relabelled(near), recipe, seed=run.seed)


def nearest(model: nn.Module, samples: Samples, bound: float) -> Tensor:
    """What each sample is taken for after one signed step away from its label, `(n,)`."""
    low, high = (
        float(f(torch.stack([f(part) for part in samples.x.split(256)])))
        for f in (torch.min, torch.max)
    )
    near = []
    with evaluating(model):
        for index in torch.split(torch.arange(len(samples)), at_once(samples.x, 256)):
            x = on(model, samples.x[index]).requires_grad_(True)
            loss = F.cross_entropy(model(x).float(), on(model, samples.y[index]))
            (g,) = torch.autograd.grad(loss, x)
            moved = (x.detach() + bound * g.sign()).clamp(low, high).cpu()
            near.append(logits(model, moved).argmax(1))
    return torch.cat(near)
