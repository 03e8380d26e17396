"""TRCE, stage 1: the state that closes a prompt is mapped onto a safe prompt's."""

from __future__ import annotations

from dataclasses import dataclass

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem

_RIDGE = 1e-8  # of the mean eigenvalue: a background of few words does not fill the space


@dataclass(frozen=True)
class Options:
    """Options of TRCE's first stage, with the defaults of its code.

    Attributes:
        preserve_scale: Weight η of ordinary captions: 0.01 for sexual content, 0.02 for unsafe.
    """

    preserve_scale: float = 0.01

    def __post_init__(self) -> None:
        within("preserve_scale", self.preserve_scale, 1e-9, 1e9)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T = (mean s mᵀ + η M₀)(mean m mᵀ + η M₀)⁻¹`: every prompt's `m` onto the safe prompt's `s`.

    `M₀` is the moment that ordinary captions add up to, one by one: a caption counts with all its
    tokens, BOS included, as in the method's code.

    Source: arXiv 2503.07389, stage 1; its second stage trains.

    Raises:
        ValueError: If there is not one anchor for each concept.
    """
    m, s = problem.concepts, problem.anchors
    if len(m) != len(s):
        raise ValueError(f"expected one anchor for each of {len(m)} concepts, got {len(s)}")
    first, tokens = problem.null[:1], max(len(problem.null) - 1, 1)
    scale = options.preserve_scale
    M = problem.retain.weighing(scale * tokens) + SecondMoment.of(m).weighing(1.0)
    if len(first):
        M = M + SecondMoment.of(first).weighing(scale)
    solved = M.inverse(M.ridge(_RIDGE))(m.T) / M.count
    return LowRankEdit((m - s).T / len(m), solved)
