"""Unified Concept Editing: ridge regression from concept to anchor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem


@dataclass(frozen=True)
class Options:
    """Options of UCE, with the defaults of its code.

    Attributes:
        erase_scale: Weight of the concepts.
        preserve_scale: Weight of the listed retain prompts.
        ridge: λ.
    """

    erase_scale: float = 1.0
    preserve_scale: float = 1.0
    ridge: float = 0.5

    def __post_init__(self) -> None:
        within("erase_scale", self.erase_scale, 0, 1e6)
        within("preserve_scale", self.preserve_scale, 0, 1e6)
        within("ridge", self.ridge, 1e-9, 1e9)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T = I + s Σ (g − c) cᵀ M⁻¹`, `M = λ I + s Σ c cᵀ + s_p Σ p pᵀ`.

    `c` are the concepts' last subject tokens, `g` their anchors, `p` the listed retain prompts'.

    Source: arXiv 2308.14761, Eq. 7.

    Raises:
        ValueError: If there is not one anchor for each concept.
    """
    c, g, p = problem.concepts, problem.anchors, problem.kept
    if len(c) != len(g):
        raise ValueError(f"expected one anchor for each of {len(c)} concepts, got {len(g)}")
    scales = (options.erase_scale, options.preserve_scale)
    weights = torch.cat([torch.full((len(x),), s) for x, s in zip((c, p), scales, strict=True)])
    seen = SecondMoment.of(torch.cat([c, p]), weights)
    if not seen.count:
        return LowRankEdit.identity(problem.width)
    solved = seen.inverse(options.ridge / seen.count)(c.T) / seen.count
    return LowRankEdit(options.erase_scale * (c - g).T, solved)
