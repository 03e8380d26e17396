"""CURE: the forget space, less the part of it that the retain space holds."""

from __future__ import annotations

from dataclasses import dataclass

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.spectral import Importance


@dataclass(frozen=True)
class Options:
    """Options of CURE.

    Attributes:
        alpha: How much weak directions count: 2 for objects and artists, 5 for NSFW.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        within("alpha", self.alpha, 0, 1e9)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`x → x − P_f x + P_f P_r x`, one α for both. Source: arXiv 2505.12677."""
    forget = Importance.of(problem.forget, options.alpha)
    retain = Importance.of(problem.retain, options.alpha)
    return LowRankEdit(forget.vectors * forget.weights, retain.outside(forget.vectors)).trimmed()
