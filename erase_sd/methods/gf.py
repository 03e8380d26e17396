"""GF and CURE: soft projections whose importances come from the spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from erase_sd.edit import LowRankEdit
from erase_sd.methods.problem import Problem
from erase_sd.moments import SecondMoment


def importance(moment: SecondMoment, alpha: float) -> Tensor:
    """`P = V diag(α s / ((α − 1) s + 1)) Vᵀ`, `s` the normalised energies; `(d, d)`."""
    values, vectors = torch.linalg.eigh(moment.matrix)
    values = values.clamp(min=0)
    energy = values / values.sum().clamp(min=1e-300)
    return (vectors * (alpha * energy / ((alpha - 1) * energy + 1))) @ vectors.T


def gf(problem: Problem, *, alpha_forget: float = 3.0, alpha_retain: float = 100.0) -> LowRankEdit:
    """`x → x − P_f x + P_r P_f x`. Source: Deep Unlearning, Eq. 4-6; the order is the paper's."""
    forget, retain = importance(problem.forget, alpha_forget), importance(problem.retain, alpha_retain)
    return _soft(forget - retain @ forget, problem.width)


def cure(problem: Problem, *, alpha: float = 2.0) -> LowRankEdit:
    """`x → x − P_f x + P_f P_r x`, one α for both; 2 for objects and artists, 5 for NSFW."""
    forget, retain = importance(problem.forget, alpha), importance(problem.retain, alpha)
    return _soft(forget - forget @ retain, problem.width)


def _soft(removed: Tensor, width: int) -> LowRankEdit:
    return LowRankEdit.from_matrix(torch.eye(width, dtype=torch.float64) - removed, tolerance=1e-9)
