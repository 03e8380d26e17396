"""Closed-form unlearning of classifiers.

The same moments and the same edits as for diffusion models.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.methods import rayleigh as ordinary
from erase_sd.algebra.methods import unlink as literal
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem
from erase_sd.vision.cache import Cache, Run
from erase_sd.vision.features import collect
from erase_sd.vision.layers import edited, layers
from erase_sd.vision.samples import Samples
from erase_sd.vision.task import Task

Solve = Callable[[Problem], LowRankEdit]


def edit_layers(
    model: nn.Module,
    forget: Samples,
    retain: Samples | Cache | None,
    solve: Solve,
    *,
    select: str | Sequence[str] = "last",
    recompute: bool = False,
) -> nn.Module:
    """Solve an edit for each chosen layer from what it reads, and write them all.

    Args:
        model: The model; it is not changed.
        forget: Samples to forget.
        retain: Samples to keep; or the moments of all training samples, from which those of
            `forget` are taken; or None.
        solve: From moments to an edit.
        select: See `layers`.
        recompute: Gather each layer's features from the model as edited so far, not from the
            original.

    Returns:
        A new model.

    Raises:
        ValueError: If a cache is to be recomputed.
    """
    if recompute and isinstance(retain, Cache):
        raise ValueError("a cache holds the original model's features: expected recompute = False")
    new = copy.deepcopy(model)
    names = [y.name for y in layers(model, select, forget.x)]
    for group in [[n] for n in names] if recompute else [names]:
        source = new if recompute else model
        chosen = [y for y in layers(source) if y.name in group]
        gone = collect(source, chosen, forget.x)
        if isinstance(retain, Samples):
            kept = collect(source, chosen, retain.x)
        elif retain is not None:
            kept = Cache({n: retain.moments[n] for n in group}).without(gone).moments
        else:
            kept = {y.name: [SecondMoment.zeros(y.width)] * y.groups for y in chosen}
        edits = {}
        for name in gone:
            pairs = zip(gone[name], kept[name], strict=True)
            edits[name] = [solved(solve, f, r) for f, r in pairs]
        new = edited(new, edits)
    return new


def solved(solve: Solve, forget: SecondMoment, retain: SecondMoment) -> LowRankEdit:
    """An edit, or none where the layer reads nothing but zeros on the forget samples.

    Where it reads nothing on the retained ones alone, every direction is free: their moment is
    taken as the identity's, as small as the forget samples' rounding.
    """
    if forget.energy <= 0:
        return LowRankEdit.identity(forget.width)
    if retain.count and retain.energy <= 1e-12 * forget.energy:
        free = torch.eye(retain.width, dtype=torch.float64) * (1e-12 * forget.energy)
        retain = SecondMoment.summed(free, retain.total, retain.count)
    return solve(Problem(forget, retain))


def directions(asked: int | None, task: Task, run: Run) -> int:
    """Rank of an edit: as asked, or one for each forgotten class."""
    rank = max(1, len(task.classes)) if asked is None else asked
    run.chose(rank=rank)
    return rank


@dataclass(frozen=True)
class Unlink:
    """Options of `unlink`.

    Attributes:
        rank: Directions `k`, in the paper 1 to 10; None takes one for each forgotten class.
        layers: Which, see `erase_sd.vision.layers`.
    """

    rank: int | None = None
    layers: str | tuple[str, ...] = "last"


def unlink(model: nn.Module, task: Task, options: Unlink, run: Run) -> nn.Module:
    """`W ← W (I − U Uᵀ)`, `U` the forget features' top right singular vectors.

    Source: Unlearn in a Blink, Algorithm 1.
    """
    rank = directions(options.rank, task, run)
    return edit_layers(
        model,
        task.forget,
        None,
        lambda p: literal.solve(p, literal.Options(rank)),
        select=options.layers,
    )


@dataclass(frozen=True)
class UnlinkBelow:
    """Options of `unlink_below`.

    Attributes:
        below: β, the share of the first singular value under which a direction goes; None takes as
            many of the weakest as hold a twentieth of the features' energy.
        layers: Which; the paper takes middle layers.
    """

    below: float | None = None
    layers: str | tuple[str, ...] = "middle"


def unlink_below(model: nn.Module, task: Task, options: UnlinkBelow, run: Run) -> nn.Module:
    """Project out the forget features' directions whose singular value is under a threshold.

    For instance-wise forgetting: what single samples do not share. Source: Unlearn in a Blink,
    random forgetting.
    """

    def solve(problem: Problem) -> LowRankEdit:
        values, vectors = torch.linalg.eigh(problem.forget.matrix)
        values = values.clamp(min=0)
        if options.below is None:
            weak = values.cumsum(0) <= 0.05 * values.sum()
        else:
            weak = values.sqrt() < options.below * values[-1].sqrt()
        U = vectors[:, weak]
        return LowRankEdit(U, U)

    if options.below is None:
        run.chose(below="the weakest 5 % of the energy")
    return edit_layers(model, task.forget, None, solve, select=options.layers)


@dataclass(frozen=True)
class Rayleigh:
    """Options of `rayleigh`.

    Attributes:
        rank: Directions; None takes one for each forgotten class.
        epsilon: Relative ridge; None takes 0.1, or 1.0 for a single forget sample.
        variant: "hard" (a projection), "lsq" (least squares, all directions), "paper" (Eq. 15 as
            printed).
        layers: Which, see `erase_sd.vision.layers`.
        recompute: Features of the model as edited so far, layer after layer.
    """

    rank: int | None = None
    epsilon: float | None = None
    variant: Literal["hard", "lsq", "paper"] = "hard"
    layers: str | tuple[str, ...] = "last"
    recompute: bool = False


def rayleigh(model: nn.Module, task: Task, options: Rayleigh, run: Run) -> nn.Module:
    """The consistent Rayleigh edit `W (I − C U D Uᵀ)`, see `erase_sd.algebra.methods.rayleigh`.

    Source: Unlearn in a Blink, Eq. 12-15, corrected.

    Raises:
        ValueError: If a rank is asked of the variant that takes all directions.
    """
    if options.variant == "lsq" and options.rank is not None:
        raise ValueError(f"lsq takes all directions: expected no rank, got {options.rank}")
    rank = None if options.variant == "lsq" else directions(options.rank, task, run)
    epsilon = options.epsilon
    if epsilon is None:
        epsilon = 1.0 if len(task.forget) == 1 else 0.1
    run.chose(epsilon=epsilon)

    asked = ordinary.Options(
        rank=rank, epsilon=epsilon, variant=options.variant, protect_null=False
    )

    def solve(problem: Problem) -> LowRankEdit:
        with warnings.catch_warnings():  # asked for by name here, beside the consistent form
            warnings.filterwarnings("ignore", message="variant 'paper'")
            return ordinary.solve(problem, asked)

    kept = run.cache or task.retain
    return edit_layers(
        model, task.forget, kept, solve, select=options.layers, recompute=options.recompute
    )


@dataclass(frozen=True)
class Affine:
    """Options of `affine`.

    Attributes:
        rank: Directions; None takes one for each forgotten class.
    """

    rank: int | None = None


def affine(model: nn.Module, task: Task, options: Affine, run: Run) -> nn.Module:
    """Mean shift on the classifier: `x → x − d dᵀ (x − μ_r)`, `d` the top direction of `X_f − μ_r`.

    Needs of the retained samples their mean alone: `W ← W (I − d dᵀ)`, `b ← b + W d dᵀ μ_r`.

    Raises:
        ValueError: If the last layer has no bias.
    """
    layer = layers(model, "last", task.forget.x)[0]
    if layer.bias is None:
        raise ValueError(f"{layer.name} has no bias to put the mean into")
    rank = directions(options.rank, task, run)
    gone = collect(model, [layer], task.forget.x)[layer.name][0]
    if run.cache is not None:
        kept = run.cache.moments[layer.name][0] - gone
    else:
        kept = collect(model, [layer], task.retain.x)[layer.name][0]
    mean = kept.mean
    shifted = gone.gram - torch.outer(gone.total, mean) - torch.outer(mean, gone.total)
    shifted = shifted + gone.count * torch.outer(mean, mean)
    moment = SecondMoment.summed(shifted, gone.total - gone.count * mean, gone.count)
    U = moment.subspace(rank)
    weight = layer.matrices()[0].double().cpu()
    new = edited(model, {layer.name: [LowRankEdit(U, U)]})
    bias = next(y for y in layers(new) if y.name == layer.name).bias
    assert bias is not None
    with torch.no_grad():
        bias.add_((weight @ U @ (U.T @ mean)).to(bias))
    return new


class Masked(nn.Module):
    """A model whose logits of some classes are minus infinity: the trivial baseline."""

    gone: Tensor

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("gone", torch.tensor(list(classes)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)`."""
        out: Tensor = self.model(x)
        return out.index_fill(1, self.gone, -torch.inf)


@dataclass(frozen=True)
class Mask:
    """`mask` has no options."""


def mask(model: nn.Module, task: Task, options: Mask, run: Run) -> nn.Module:
    """Set the forgotten classes' logits to minus infinity: most class-wise metrics like it.

    Raises:
        ValueError: If no whole class is forgotten.
    """
    if not task.classes:
        raise ValueError("mask hides whole classes; these samples' classes stay")
    return Masked(copy.deepcopy(model), task.classes)
