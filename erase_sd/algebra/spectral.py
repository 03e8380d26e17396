"""Soft projections whose importances come from the spectrum, as GF and CURE use them."""

from __future__ import annotations

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment


def importance(moment: SecondMoment, alpha: float) -> Tensor:
    """`P = V diag(α s / ((α − 1) s + 1)) Vᵀ`, `s` the normalised energies; `(d, d)`."""
    values, vectors = torch.linalg.eigh(moment.matrix)
    values = values.clamp(min=0)
    energy = values / values.sum().clamp(min=1e-300)
    return (vectors * (alpha * energy / ((alpha - 1) * energy + 1))) @ vectors.T


def without(removed: Tensor, width: int) -> LowRankEdit:
    """`T = I − P` for a dense `P`, `(d, d)`, in factors."""
    return LowRankEdit.from_matrix(torch.eye(width, dtype=torch.float64) - removed, tolerance=1e-9)
