"""GF: the importance-weighted forget space, less what the retain space explains of it."""

from __future__ import annotations

from dataclasses import dataclass

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.spectral import Importance


@dataclass(frozen=True)
class Options:
    """Options of GF.

    Attributes:
        alpha_forget: How much weak directions of the forget rows count; 1 is their energy.
        alpha_retain: The same for the retained rows.
    """

    alpha_forget: float = 3.0
    alpha_retain: float = 100.0

    def __post_init__(self) -> None:
        within("alpha_forget", self.alpha_forget, 0, 1e9)
        within("alpha_retain", self.alpha_retain, 0, 1e9)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`x → x − P_f x + P_r P_f x`. Source: Deep Unlearning, Eq. 4-6; the order is the paper's."""
    forget = Importance.of(problem.forget, options.alpha_forget)
    retain = Importance.of(problem.retain, options.alpha_retain)
    return LowRankEdit(retain.outside(forget.vectors * forget.weights), forget.vectors).trimmed()
