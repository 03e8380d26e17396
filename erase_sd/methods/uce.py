"""Unified Concept Editing: ridge regression from concept to anchor."""

from __future__ import annotations

import torch

from erase_sd.edit import LowRankEdit
from erase_sd.methods.problem import Problem


def uce(
    problem: Problem,
    *,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    ridge: float = 0.5,
) -> LowRankEdit:
    """`T = I + s Σ (g − c) cᵀ M⁻¹`, `M = λ I + s Σ c cᵀ + s_p Σ p pᵀ`.

    `c` are the concepts' last subject tokens, `g` their anchors, `p` the listed retain prompts'.

    Source: arXiv 2308.14761, Eq. 7, with the defaults of its code.
    """
    c, g, p = problem.concepts, problem.anchors, problem.kept
    if len(c) != len(g):
        raise ValueError(f"expected one anchor for each of {len(c)} concepts, got {len(g)}")
    eye = torch.eye(problem.width, dtype=torch.float64)
    M = ridge * eye + erase_scale * c.T @ c + preserve_scale * p.T @ p
    return LowRankEdit(erase_scale * (c - g).T, torch.linalg.solve(M, c.T))
