"""Unlink on what is left of the forget prompts outside the protected span."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import orthonormal, strongest
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import NothingLeft, Problem


@dataclass(frozen=True)
class Options:
    """Options of deflated Unlink.

    Attributes:
        rank: Number of directions.
        energy: Share of the protected rows' squared norm that is given up: the larger, the less is
            protected and the more can be erased.
    """

    rank: int = 1
    energy: float = 0.01

    def __post_init__(self) -> None:
        within("rank", self.rank, 1)
        within("energy", self.energy, 0, 1)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """Unlink on `X_f (I − Q Qᵀ)`, `Q` spanning the empty prompt and the retained rows.

    Protected rows are kept to a share `energy` of their squared norm, the empty prompt to 1e-8.

    Raises:
        NothingLeft: If the forget prompts lie inside the protected span.
    """
    left = problem.forget.outside(_protected(problem, options.energy))
    if left.energy < 1e-8 * problem.forget.energy:
        raise NothingLeft(
            "the forget prompts lie inside the protected span: nothing is left to erase; "
            "retain fewer prompts or raise the method's `energy`"
        )
    U = left.subspace(options.rank)
    return LowRankEdit(U, U)


def _protected(problem: Problem, energy: float) -> Tensor:
    """Orthonormal basis `(d, q)` of the empty prompt and all but `energy` of the retain moment."""
    null = orthonormal(problem.nulls, energy=1e-8)
    rest = problem.retain.outside(null)
    if rest.energy <= 1e-12 * problem.retain.energy:  # nothing but rounding
        return null
    basis, _ = torch.linalg.qr(torch.cat([null, strongest(rest, energy)], dim=1))
    return basis
