"""Unlink's subspace, removed by the map that moves retained features least."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem, protected


@dataclass(frozen=True)
class Options:
    """Options of oblique Unlink.

    Attributes:
        rank: Number of directions.
        epsilon: Relative ridge on the retain moment.
        protect_null: Whether the empty prompt's states stay exactly.
        protect_named: Whether the states of named retain prompts stay exactly too; it costs others.
    """

    rank: int = 1
    epsilon: float = 1e-3
    protect_null: bool = True
    protect_named: bool = False

    def __post_init__(self) -> None:
        within("rank", self.rank, 1)
        within("epsilon", self.epsilon, 1e-12, 1e12)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """Of all maps with `T U = 0`, the one with the least `E_r ‖T x − x‖²`.

    `T = I − U (Uᵀ S⁻¹ U)⁻¹ Uᵀ S⁻¹` with `S = C_r + ε (tr C_r / d) I`. With `protect_null`, `S⁻¹` is
    taken on the orthogonal complement of the protected states, which `T` then fixes exactly.
    """
    U = problem.forget.subspace(options.rank)
    kept = torch.zeros(problem.width, 0, dtype=torch.float64)
    if options.protect_null:
        kept = protected(problem, named=options.protect_named)
    solve = problem.retain.outside(kept).inverse(problem.retain.ridge(options.epsilon))
    B = solve(U - kept @ (kept.T @ U))
    B = B - kept @ (kept.T @ B)
    return LowRankEdit(U @ torch.linalg.pinv(B.T @ U), B)
