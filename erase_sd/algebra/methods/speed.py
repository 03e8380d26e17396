"""SPEED: an edit confined to the null space of what is retained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    eye = torch.eye(problem.width, dtype=torch.float64)
    C, A = c.T @ c / len(c), a.T @ c / len(c)
    values, vectors = torch.linalg.eigh(problem.retain.matrix)
    free = vectors[:, values < options.threshold]
    P = free @ free.T
    M = torch.linalg.inv(C @ P + options.retain_scale * eye)
    K = torch.cat([null_centroids(n) for n in (problem.null, problem.other_nulls)]).T
    inner = K.T @ P @ M @ K + options.null_ridge * torch.eye(K.shape[1], dtype=torch.float64)
    fixed = eye - M @ K @ torch.linalg.pinv(inner, rtol=1e-10) @ K.T @ P
    return LowRankEdit.from_matrix(eye + (A - C) @ P @ fixed @ M, tolerance=1e-9)


def null_centroids(null: torch.Tensor, clusters: int = 3) -> torch.Tensor:
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
