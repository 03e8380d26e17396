"""Training anew: all of the network (the reference of every table), or its last layers (EU-k)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from erase_sd.vision.cache import Run
from erase_sd.vision.layers import in_order
from erase_sd.vision.methods.relabel import common
from erase_sd.vision.pretrained import Logits, ZeroShot
from erase_sd.vision.task import Task
from erase_sd.vision.train import Loop, Recipe, train


@dataclass(frozen=True)
class Retrain(Recipe):
    """Options of `retrain`: the recipe that trained the original, which see.

    And a file to resume from.
    """

    epochs: int = 100
    lr: float = 0.1
    batch: int = 128
    schedule: Literal["constant", "one-cycle", "cosine", "steps", "exponential"] = "one-cycle"
    resume: str | None = None


def retrain(model: nn.Module, task: Task, options: Retrain, run: Run) -> nn.Module:
    """Train anew on what is retained: the reference for all others.

    Raises:
        ValueError: If a module cannot reset its parameters.
    """
    new = reset(model, seed=run.seed)
    resume = Path(options.resume) if options.resume else None
    loop = Loop(resume=resume, desc="retraining")
    return train(new, task.retain, options, seed=run.seed, loop=loop)


def reset(model: nn.Module, names: Sequence[str] | None = None, *, seed: int = 0) -> nn.Module:
    """A copy with fresh parameters in all modules, or in some by name.

    Raises:
        ValueError: If a module cannot reset its parameters, or the model is zero-shot.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if names is None and isinstance(model, Logits):
            device, dtype = next((p.device, p.dtype) for p in model.parameters())
            return model.fresh().to(device, dtype)
        if names is None and isinstance(model, ZeroShot):
            raise ValueError("zero-shot CLIP has no training set here: it cannot be trained anew")
        new = copy.deepcopy(model)
        for name, module in new.named_modules():
            if names is not None and name not in names:
                continue
            if any(True for _ in module.parameters(recurse=False)):
                again = getattr(module, "reset_parameters", None)
                if isinstance(module, nn.MultiheadAttention):
                    again = module._reset_parameters
                if again is None:
                    kind = type(module).__name__
                    raise ValueError(f"{name} ({kind}) cannot reset its parameters")
                again()
    return new


@dataclass(frozen=True)
class LastLayers:
    """Options of `eu_k`: how many of the layers that run last, passes and learning rate."""

    k: int = 3
    epochs: int = 10
    lr: float = 0.01


def eu_k(model: nn.Module, task: Task, options: LastLayers, run: Run) -> nn.Module:
    """EU-k (arXiv 2201.06640): the last k layers fresh and trained; the rest frozen.

    PGU's paper takes three. Batch norm stays in evaluation mode: training would move the frozen
    layers' statistics.

    Raises:
        ValueError: If there are not so many layers.
    """
    order = [y.name for y in in_order(model, task.forget.x)]
    if not 1 <= options.k <= len(order):
        raise ValueError(f"expected k of 1..{len(order)}, got {options.k}")
    names = order[-options.k :]
    new = reset(model, names, seed=run.seed)
    moving = [p for name in names for p in new.get_submodule(name).parameters()]
    loop = Loop(parameters=moving, train_mode=False)
    return train(new, task.retain, common(options.epochs, options.lr), seed=run.seed, loop=loop)
