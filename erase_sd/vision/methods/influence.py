"""Influence and Newton steps: IU, first and second order."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from erase_sd.vision.cache import Run
from erase_sd.vision.layers import evaluating
from erase_sd.vision.samples import at_once, portions
from erase_sd.vision.task import Task
from erase_sd.vision.train import batches, cross_entropy, gradient, moving_parameters, on


@dataclass(frozen=True)
class Influence:
    """Options of `influence`.

    How far to go, and how many retained gradients make the Fisher matrix.
    """

    alpha: float = 10.0
    samples: int = 1000


def influence(model: nn.Module, task: Task, options: Influence, run: Run) -> nn.Module:
    """IU: `θ + α F⁻¹ (g_f − g_r) n_f / n` by WoodFisher's recursion over single retained gradients.

    Source: arXiv 2103.03279 as in SalUn's code; α in 1…20.
    """
    new = copy.deepcopy(model)
    share = len(task.forget) / (len(task.forget) + len(task.retain))
    of_forget, of_retain = (_flat(gradient(new, p)) for p in (task.forget, task.retain))
    k = share * (of_forget - of_retain)
    o: Tensor | None = None
    picked = task.retain.sample(options.samples + 1, run.seed)
    for i in range(len(picked)):
        g = _flat(gradient(new, picked[torch.tensor([i])]))
        if o is None:
            o = g.clone()
            continue
        t = o @ g
        k = k - (k @ g) / (options.samples + t) * o
        o = o - t / (options.samples + t) * o
    _add(new, options.alpha * k)
    return new


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.flatten() for p in parts])


@torch.no_grad()
def _add(model: nn.Module, step: Tensor) -> None:
    """Add a flat vector to the parameters that move."""
    start = 0
    for p in moving_parameters(model):
        p.add_(step[start : start + p.numel()].view_as(p))
        start += p.numel()


# How torch says that an operation cannot be differentiated in this way.
LACKING = (
    "forward AD",
    "derivative for",
    "differentiate twice",
    "not have been used in the graph",
    "setup_context",
)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by plain products.

    The fused kernels have neither second derivatives nor forward ones.

    Raises:
        ValueError: If the network has another operation without them.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:  # NotImplementedError is one
        told = " ".join(str(error).split())
        if not any(word in told for word in LACKING):
            raise
        raise ValueError(
            "expected a network with second and forward derivatives, got one with an operation "
            f"that has none: {told[:160]}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@dataclass(frozen=True)
class FirstOrder:
    """Options of `first_order`: the length of the step."""

    tau: float = 1e-2


def first_order(model: nn.Module, task: Task, options: FirstOrder, run: Run) -> nn.Module:
    """One step that undoes the forget samples' gradients: `θ − τ v`.

    `v = Σ ∇ℓ(z̃) − Σ ∇ℓ(z)`, with `z̃` the corrected samples where the task has true labels, else
    nothing.
    Source: arXiv 2108.11577.
    """
    new = copy.deepcopy(model)
    _add(new, -options.tau * _flat(_exchange(new, task)))
    return new


def _exchange(model: nn.Module, task: Task) -> list[Tensor]:
    """Gradient sum of what comes in less that of what goes."""
    count = len(task.forget)
    v = [-g * count for g in gradient(model, task.forget)]
    if task.corrected is not None:
        right = task.forget.relabelled(task.corrected)
        v = [a + g * count for a, g in zip(v, gradient(model, right), strict=True)]
    return v


@dataclass(frozen=True)
class SecondOrder:
    """Options of `second_order`.

    Attributes:
        tau: Length of the step.
        damping: Added to the Hessian.
        scale: LiSSA's; at least the Hessian's largest eigenvalue.
        iterations: Of LiSSA.
        batch: Retained samples in each.
    """

    tau: float = 1.0
    damping: float = 0.1
    scale: float = 50.0
    iterations: int = 30
    batch: int = 256


def second_order(model: nn.Module, task: Task, options: SecondOrder, run: Run) -> nn.Module:
    """The same through the inverse Hessian, by LiSSA: `h ← v + h − (H + δ) h / s`.

    Source: arXiv 2108.11577; LiSSA arXiv 1602.03943.

    Raises:
        ValueError: If LiSSA diverges.
    """
    new = copy.deepcopy(model)
    moving = moving_parameters(new)
    total = len(task.retain) + len(task.forget)
    v = [g / total for g in _exchange(new, task)]
    h = [t.clone() for t in v]
    generator = run.generator()
    with evaluating(new), twice_differentiable():
        for _step in range(options.iterations):
            index = next(batches(len(task.retain), options.batch, generator))
            product = [torch.zeros_like(t) for t in h]
            for share in portions(index, at_once(task.retain.x, options.batch + 1)):
                x, y = on(new, task.retain.x[share]), on(new, task.retain.y[share])
                value = cross_entropy(new(x), y, x)
                found = torch.autograd.grad(value, moving, create_graph=True, allow_unused=True)
                first = {i: g for i, g in enumerate(found) if g is not None}
                along = torch.stack([(g * h[i]).sum() for i, g in first.items()]).sum()
                second = torch.autograd.grad(along, [moving[i] for i in first])
                for i, g in zip(first, second, strict=True):
                    product[i] += g * (len(share) / len(index))
            parts = zip(v, h, product, strict=True)
            h = [a + b - (c + options.damping * b) / options.scale for a, b, c in parts]
            if not all(torch.isfinite(t).all() for t in h):
                raise ValueError(f"LiSSA diverged: raise its scale ({options.scale})")
    _add(new, -options.tau / options.scale * _flat(h))
    return new
