"""Influence and Newton steps: IU, NTK, first and second order."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from erase_sd.vision.cache import Run
from erase_sd.vision.layers import evaluating
from erase_sd.vision.samples import Samples, at_once, portions
from erase_sd.vision.task import Task
from erase_sd.vision.train import (
    accuracy,
    batches,
    cross_entropy,
    gradient,
    logits,
    moving_parameters,
    on,
)


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
class NTK:
    """Options of `ntk`.

    Attributes:
        samples: Of each set; the dual form solves for all of them.
        ridge: Of both regressions.
        iterations: Of conjugate gradients.
        scale: What the step is multiplied by; None finds it by a line search.
    """

    samples: int = 200
    ridge: float = 10.0
    iterations: int = 50
    scale: float | None = None


def ntk(model: nn.Module, task: Task, options: NTK, run: Run) -> nn.Module:
    """Linearised forgetting: the tangent model without the forget samples.

    `Δ = w(D_r) − w(D)`, both ridge regressions of the one-hot residuals onto the Jacobian at the
    current weights, in dual form by conjugate gradients: the Jacobian is only ever multiplied,
    never stored. At weights that fit their training set the residuals are next to nothing, and so
    is Δ: its direction counts, its length does not. The source linearises at the weights before
    training, which are not kept, and corrects the length too (its trapezium rule). Here a line
    search in quarter decades does: it scores `acc_retain (1 − acc_forget)` on the samples used,
    and for single samples how near the forgotten come to be known as unseen ones are.

    Source: arXiv 2003.02960, Eq. 8-10.
    """
    forget, retain = (p.sample(options.samples, run.seed) for p in (task.forget, task.retain))
    with twice_differentiable():
        kept = _ridge(model, retain, options)
        both = _ridge(model, forget.joined(retain), options)
    step = {n: kept[n] - both[n] for n in kept}
    if options.scale is not None:
        return moved(model, step, options.scale)
    scale = _searched(model, step, task, (forget, retain))
    run.chose(scale=scale)
    return moved(model, step, scale)


@torch.no_grad()
def moved(model: nn.Module, step: dict[str, Tensor], scale: float) -> nn.Module:
    """A copy of the model some way along a step."""
    new = copy.deepcopy(model)
    for name, p in new.named_parameters():
        if name in step:
            p.add_(scale * step[name])
    return new


def _searched(
    model: nn.Module, step: dict[str, Tensor], task: Task, used: tuple[Samples, Samples]
) -> float:
    """The scale whose model does best, in quarter decades from 1 to 10⁶."""
    forget, retain = used
    grid = [10 ** (i / 4) for i in range(25)]
    held = task.validation
    if not task.classes and held is None:
        raise ValueError(
            "to find its scale NTK needs unseen samples (task.validation), or an option scale"
        )
    best, found = -math.inf, grid[0]
    for scale in grid:
        new = moved(model, step, scale)
        if not all(torch.isfinite(p).all() for p in new.parameters()):
            break
        known = accuracy(new, forget)
        if task.classes or held is None:
            score = accuracy(new, retain) * (100 - known)
        else:
            score = -abs(known - accuracy(new, held))
        if score > best:
            best, found = score, scale
    return found


def _ridge(model: nn.Module, part: Samples, options: NTK) -> dict[str, Tensor]:
    """`Jᵀ (J Jᵀ / n + ρ I)⁻¹ r / n` of the residuals of some samples."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    shares = portions(torch.arange(len(part)), at_once(part.x, 256))

    def outputs(index: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
        x = on(model, part.x[index])
        return lambda weights: functional_call(model, weights, (x,)).float()

    def pull(a: Tensor) -> dict[str, Tensor]:
        parts = [vjp(outputs(i), named)[1](a[i])[0] for i in shares]
        return {n: torch.stack([p[n] for p in parts]).sum(0) for n in named}

    def push(step: dict[str, Tensor]) -> Tensor:
        return torch.cat([jvp(outputs(i), (named,), (step,))[1] for i in shares])

    with evaluating(model):
        out = on(model, logits(model, part.x))
        residual = F.one_hot(on(model, part.y), out.shape[1]).float() - out.float().softmax(1)

        def kernel(a: Tensor) -> Tensor:
            return push(pull(a)) / len(part) + options.ridge * a

        a, r = torch.zeros_like(residual), residual.clone()
        d, size = r.clone(), r.square().sum()
        for _step in range(options.iterations):
            Kd = kernel(d)
            step = size / (d * Kd).sum()
            a, r = a + step * d, r - step * Kd
            new_size = r.square().sum()
            if new_size < 1e-10 * residual.square().sum():
                break
            d, size = r + new_size / size * d, new_size
        return {n: g.detach() / len(part) for n, g in pull(a).items()}


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
            for share in portions(index, at_once(task.retain.x, options.batch)):
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
