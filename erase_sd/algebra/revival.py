"""The embedding that best revives a concept through edited weights."""

from __future__ import annotations

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit


def revival(edit: LowRankEdit, concepts: Tensor, weight_gram: Tensor, *, rho: float) -> Tensor:
    """The embeddings that best bring concepts back through the edited weights, `(c, d)`.

    `c' = (ρ I + Σ W'ᵀW')⁻¹ (Σ W'ᵀ W) c` with `W' = W T`, hence from `G = Σ WᵀW` alone:
    `(ρ I + Tᵀ G T)⁻¹ Tᵀ G c`. Source: arXiv 2407.12383, Eq. 9.
    """
    T = edit.matrix
    eye = torch.eye(len(T), dtype=torch.float64)
    solve = torch.linalg.solve(rho * eye + T.T @ weight_gram @ T, T.T @ weight_gram @ concepts.T)
    return solve.T
