"""Closed-form unlearning of classifiers: the same moments and the same edits as for diffusion models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.methods.gf import gf as gf_edit
from erase_sd.algebra.methods.rayleigh import rayleigh as rayleigh_edit
from erase_sd.algebra.methods.unlink import unlink as unlink_edit
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem
from erase_sd.vision.layers import collect, edited, layers
from erase_sd.vision.task import Samples, Task
from erase_sd.vision.train import accuracy

Solve = Callable[[Problem], LowRankEdit]
Moments = dict[str, list[SecondMoment]]


def edit_layers(
    model: nn.Module,
    forget: Samples,
    retain: Samples | Moments | None,
    solve: Solve,
    *,
    select: str | Sequence[str] = "last",
    recompute: bool = False,
) -> nn.Module:
    """Solve an edit for each chosen layer from what it reads, and write them all.

    Args:
        model: The model; it is not changed.
        forget: Samples to forget.
        retain: Samples to keep, or their moments by layer (a cache: it holds no sample), or None.
        solve: From moments to an edit.
        select: See `layers`.
        recompute: Gather each layer's features from the model as edited so far, not from the original.

    Returns:
        A new model.
    """
    new = copy.deepcopy(model)
    names = [y.name for y in layers(model, select)]
    for group in [[n] for n in names] if recompute else [names]:
        source = new if recompute else model
        chosen = [y for y in layers(source, "all") if y.name in group]
        gone = collect(source, chosen, forget.x)
        if isinstance(retain, Samples):
            kept = collect(source, chosen, retain.x)
        else:
            kept = retain or {y.name: [SecondMoment.zeros(y.width)] * y.groups for y in chosen}
        edits = {
            y.name: [solve(Problem(f, r)) for f, r in zip(gone[y.name], kept[y.name], strict=True)] for y in chosen
        }
        new = edited(new, edits)
    return new


def unlink(model: nn.Module, task: Task, *, rank: int = 1, layers: str = "last", **_: Any) -> nn.Module:
    """`W ← W (I − U Uᵀ)`, `U` the forget features' top right singular vectors; needs the forget samples alone.

    Source: Unlearn in a Blink, Algorithm 1.
    """
    return edit_layers(model, task.forget, None, lambda p: unlink_edit(p, rank=rank), select=layers)


def unlink_below(model: nn.Module, task: Task, *, below: float = 0.01, layers: str = "last", **_: Any) -> nn.Module:
    """Project out the forget features' directions whose singular value is under a share of the first.

    For instance-wise forgetting: what single samples do not share. Source: Unlearn in a Blink, random forgetting.
    """

    def solve(problem: Problem) -> LowRankEdit:
        values, vectors = torch.linalg.eigh(problem.forget.matrix)
        scale = values.clamp(min=0).sqrt()
        U = vectors[:, scale < below * scale[-1]]
        return LowRankEdit(U, U)

    return edit_layers(model, task.forget, None, solve, select=layers)


def rayleigh(
    model: nn.Module,
    task: Task,
    *,
    rank: int = 1,
    epsilon: float = 0.0,
    variant: str = "hard",
    layers: str = "last",
    recompute: bool = False,
    retained: Moments | None = None,
    **_: Any,
) -> nn.Module:
    """The consistent Rayleigh edit `W (I − C U D Uᵀ)`, see `erase_sd.algebra.methods.rayleigh`.

    Args:
        model: The model.
        task: The task.
        rank: Directions; several classes need one each, and get them by default.
        epsilon: Relative ridge; 0 takes 0.1, or 1.0 for a single forget sample.
        variant: "hard", "lsq" or "paper".
        layers: Which, see `erase_sd.vision.layers`.
        recompute: Features of the model as edited so far.
        retained: Cached moments of all retained samples, instead of a pass over them.

    Source: Unlearn in a Blink, Eq. 12-15, corrected.
    """
    epsilon = epsilon or (1.0 if len(task.forget) == 1 else 0.1)
    rank = max(rank, len(task.classes))

    def solve(problem: Problem) -> LowRankEdit:
        return rayleigh_edit(problem, rank=rank, epsilon=epsilon, variant=variant, protect_null=False)

    kept = task.retain if retained is None else retained
    return edit_layers(model, task.forget, kept, solve, select=layers, recompute=recompute)


def affine(model: nn.Module, task: Task, *, rank: int = 1, **_: Any) -> nn.Module:
    """Mean shift on the classifier: `x → x − d dᵀ (x − μ_r)`, `d` the top direction of `X_f − μ_r`.

    Needs of the retained samples their mean alone: `W ← W (I − d dᵀ)`, `b ← b + W d dᵀ μ_r`.

    Raises:
        ValueError: If the last layer has no bias.
    """
    layer = layers(model, "last")[0]
    if getattr(layer.module, "bias", None) is None:
        raise ValueError(f"{layer.name} has no bias to put the mean into")
    gone = collect(model, [layer], task.forget.x)[layer.name][0]
    mean = collect(model, [layer], task.retain.x)[layer.name][0].mean
    shifted = gone.gram - torch.outer(gone.total, mean) - torch.outer(mean, gone.total)
    shifted = shifted + gone.count * torch.outer(mean, mean)
    U = SecondMoment(shifted, gone.total - gone.count * mean, gone.count).subspace(max(rank, len(task.classes)))
    weight = layer.matrices()[0].double().cpu()
    new = edited(model, {layer.name: [LowRankEdit(U, U)]})
    module: Any = dict(new.named_modules())[layer.name]
    with torch.no_grad():
        module.bias.add_((weight @ U @ (U.T @ mean)).to(module.bias))
    return new


def gf(
    model: nn.Module,
    task: Task,
    *,
    layers: str = "all",
    samples: int = 900,
    alphas_retain: Sequence[float] = (10, 30, 100, 300, 1000),
    alphas_forget: Sequence[float] = (1, 3, 10, 30, 100),
    seed: int = 0,
    **_: Any,
) -> nn.Module:
    """Importance-weighted projections of every layer, the best pair of a grid on held-out training samples.

    Each grid point starts from the unmodified model; the score is `acc_retain (1 − acc_forget)` on samples that
    gave no feature (the reference code scores on test samples, a leak).

    Args:
        model: The model.
        task: The task.
        layers: Which.
        samples: How many of each set give the features.
        alphas_retain: Grid of α_r.
        alphas_forget: Grid of α_f.
        seed: Of the split.

    Source: Deep Unlearning (arXiv 2312.00761), Algorithm 1.
    """
    parts = []
    for part in (task.forget, task.retain):
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        count = min(samples, max(1, len(part) * 4 // 5))
        parts += [part[order[:count]], part[order[count : count + samples]]]
    forget, forget_held, retain, retain_held = parts
    forget_held = forget_held if len(forget_held) else forget
    from erase_sd.vision.layers import layers as find

    chosen = find(model, layers)
    gone, kept = collect(model, chosen, forget.x), collect(model, chosen, retain.x)
    best: tuple[float, nn.Module] | None = None
    for a_r in alphas_retain:
        for a_f in alphas_forget:
            edits = {
                n: [
                    gf_edit(Problem(f, r), alpha_forget=a_f, alpha_retain=a_r)
                    for f, r in zip(gone[n], kept[n], strict=True)
                    if f.count
                ]
                for n in gone
            }
            new = edited(model, edits)
            score = accuracy(new, retain_held) * (100 - accuracy(new, forget_held))
            if best is None or score > best[0]:
                best = score, new
    assert best is not None
    return best[1]


class Masked(nn.Module):
    """A model whose logits of some classes are minus infinity: the trivial baseline."""

    gone: Tensor

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("gone", torch.tensor(list(classes)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)`."""
        return self.model(x).index_fill(1, self.gone, -torch.inf)


def mask(model: nn.Module, task: Task, **_: Any) -> nn.Module:
    """Set the forgotten classes' logits to minus infinity; it equals retraining in most class-wise metrics.

    Raises:
        ValueError: If no whole class is forgotten.
    """
    if not task.classes:
        raise ValueError("mask hides whole classes; these samples' classes stay")
    return Masked(copy.deepcopy(model), task.classes)
