"""Unlink: project the forget prompts' top directions out, literally."""

from __future__ import annotations

from dataclasses import dataclass

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem


@dataclass(frozen=True)
class Options:
    """Options of Unlink.

    Attributes:
        rank: Number of directions; the paper's is 1 to 10.
    """

    rank: int = 1

    def __post_init__(self) -> None:
        within("rank", self.rank, 1)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T = I − U Uᵀ`, `U` the top `rank` right singular vectors of the uncentred forget rows.

    The first of them is the rows' mean direction, which all prompts share to a large part: on CLIP
    this takes much of every other concept along.

    Source: Unlearn in a Blink, Algorithm 1.
    """
    U = problem.forget.subspace(options.rank)
    return LowRankEdit(U, U)
