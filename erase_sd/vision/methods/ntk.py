"""NTK: the difference of two linearised models. Source: arXiv 2003.02960, Eq. 8-10."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from erase_sd.vision.cache import Run
from erase_sd.vision.layers import evaluating
from erase_sd.vision.methods.influence import twice_differentiable
from erase_sd.vision.samples import Samples, at_once, portions
from erase_sd.vision.task import Task
from erase_sd.vision.train import accuracy, logits, on


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
