"""GF: importance-weighted projections of every layer, the best pair of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.methods import gf as soft
from erase_sd.algebra.problem import Problem
from erase_sd.vision.cache import Run
from erase_sd.vision.features import collect
from erase_sd.vision.layers import edited, layers
from erase_sd.vision.methods.closed_form import solved
from erase_sd.vision.samples import Samples
from erase_sd.vision.task import Task
from erase_sd.vision.train import accuracy


@dataclass(frozen=True)
class GF:
    """Options of `gf`.

    Attributes:
        layers: Which.
        samples: How many of each set give the features.
        patches: At most about so many rows of each layer, as in the reference code; None takes all.
        alphas_retain: Grid of α_r.
        alphas_forget: Grid of α_f.
    """

    layers: str | tuple[str, ...] = "all"
    samples: int = 900
    patches: int | None = 10_000
    alphas_retain: tuple[float, ...] = (10, 30, 100, 300, 1000)
    alphas_forget: tuple[float, ...] = (1, 3, 10, 30, 100)


def gf(model: nn.Module, task: Task, options: GF, run: Run) -> nn.Module:
    """Importance-weighted projections of every layer, the best of a grid on held-out samples.

    Each grid point starts from the unmodified model; the score is `acc_retain (1 − acc_forget)` on
    samples that gave no feature (the reference code scores on test samples, a leak).

    Raises:
        ValueError: If the grid is empty.

    Source: Deep Unlearning (arXiv 2312.00761), Algorithm 1.
    """
    grid = [(r, f) for r in options.alphas_retain for f in options.alphas_forget]
    if not grid:
        raise ValueError("expected at least one α_r and one α_f, got an empty grid")
    forget, forget_held = _split(task.forget, options.samples, run.seed)
    retain, retain_held = _split(task.retain, options.samples, run.seed)
    forget_held = forget_held if len(forget_held) else forget
    chosen = layers(model, options.layers, task.forget.x)
    gone, kept = (
        collect(model, chosen, part.x, limit=options.patches, seed=run.seed)
        for part in (forget, retain)
    )
    best: tuple[float, nn.Module, Sequence[float]] | None = None
    for a_r, a_f in grid:

        def solve(problem: Problem, a_r: float = a_r, a_f: float = a_f) -> LowRankEdit:
            return soft.solve(problem, soft.Options(alpha_forget=a_f, alpha_retain=a_r))

        edits = {}
        for name in gone:
            pairs = zip(gone[name], kept[name], strict=True)
            edits[name] = [solved(solve, f, r) for f, r in pairs]
        new = edited(model, edits)
        score = accuracy(new, retain_held) * (100 - accuracy(new, forget_held))
        if best is None or score > best[0]:
            best = score, new, (a_r, a_f)
    assert best is not None
    run.chose(alphas_retain=(best[2][0],), alphas_forget=(best[2][1],))
    return best[1]


def _split(part: Samples, samples: int, seed: int) -> tuple[Samples, Samples]:
    """Samples that give features, and as many that give the score."""
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    count = min(samples, max(1, len(part) * 4 // 5))
    return part[order[:count]], part[order[count : count + samples]]
