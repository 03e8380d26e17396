"""SPEED: an edit confined to the null space of what is retained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem


@dataclass(frozen=True)
class Options:
    """Options of SPEED.

    Attributes:
        threshold: Directions whose singular value is below it are free.
        retain_scale: Ridge `s`.
        null_ridge: Ridge λ of the constraint on the empty prompt.
    """

    threshold: float = 0.1
    retain_scale: float = 1.0
    null_ridge: float = 0.0

    def __post_init__(self) -> None:
        within("threshold", self.threshold, 0, 1e9)
        within("retain_scale", self.retain_scale, 1e-6, 1e9)
        within("null_ridge", self.null_ridge, 0, 1e9)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T = I + (A − C) P [I − M K (Kᵀ P M K + λ I)⁻¹ Kᵀ P] M`, `M = (C P + s I)⁻¹`.

    `C = mean c cᵀ` and `A = mean a cᵀ` over concepts and anchors; `P` projects on the directions of
    the retain moment whose singular value is below `threshold`; `K` holds BOS and three centroids
    of the empty prompt, which stay fixed.

    Source: arXiv 2503.07392 and its code; it edits the values only.

    Raises:
        ValueError: If there is not one anchor for each concept.
    """
    c, a = problem.concepts, problem.anchors
    if len(c) != len(a):
        raise ValueError(f"expected one anchor for each of {len(c)} concepts, got {len(a)}")
    n, scale = len(c), options.retain_scale
    values, vectors = problem.retain.eigen
    bound = vectors[:, values >= options.threshold]

    def free(columns: Tensor) -> Tensor:  # P X
        return columns - bound @ (bound.T @ columns)

    # C P = cᵀ (c P) / n, so M = (I − cᵀ (n s I + c P cᵀ)⁻¹ c P) / s, and M X needs no d × d.
    inner = torch.linalg.inv(n * scale * torch.eye(n, dtype=c.dtype) + c @ free(c.T))

    def damped(columns: Tensor) -> Tensor:  # M X
        return (columns - c.T @ (inner @ (c @ free(columns)))) / scale

    def damped_from_the_left(rows: Tensor) -> Tensor:  # X M
        return (rows - free(((rows @ c.T) @ inner @ c).T).T) / scale

    K = torch.cat([null_centroids(nulls) for nulls in (problem.null, problem.other_nulls)]).T
    MK = damped(K)
    bend = K.T @ free(MK) + options.null_ridge * torch.eye(K.shape[1], dtype=c.dtype)
    seen = free(c.T).T  # c P
    fixed = seen - (seen @ MK) @ torch.linalg.pinv(bend, rtol=1e-10) @ free(K).T
    return LowRankEdit((c - a).T / n, damped_from_the_left(fixed).T).trimmed()


def null_centroids(null: Tensor, clusters: int = 3) -> Tensor:
    """BOS (the first row) and `clusters` k-means centres of the other rows, `(1 + clusters, d)`."""
    if len(null) <= clusters + 1:
        return null
    rest = null[1:]
    centres = rest[torch.linspace(0, len(rest) - 1, clusters).long()]
    for _ in range(50):  # Lloyd's iterations from evenly spaced positions: deterministic
        nearest = torch.cdist(rest, centres).argmin(1)
        moved = torch.stack(
            [
                rest[nearest == i].mean(0) if (nearest == i).any() else centres[i]
                for i in range(clusters)
            ]
        )
        if torch.equal(moved, centres):
            break
        centres = moved
    return torch.cat([null[:1], centres])
