"""The generalized Rayleigh quotient.

Which directions tell what is to be forgotten from what is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erase_sd.algebra.problem import NothingLeft, Problem


def quotient(problem: Problem, kept: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Solve `C_f u = λ C u` on a subspace, `C = C_r + ε (tr C_r / d) I`.

    With `C_f = F Fᵀ` of few columns only `Fᵀ C⁻¹ F` is taken apart, and `C` only solved with.

    Args:
        problem: Forget and retain moments.
        kept: `(d, q)` orthonormal basis of what is protected; the subspace is orthogonal to it.
        epsilon: Relative ridge.

    Returns:
        `λ (k,)` descending and positive, and `U (d, k)` with `UᵀCU = I`.

    Raises:
        NothingLeft: If the forget rows have no part in the subspace.
    """
    forget = problem.forget.outside(kept)
    if forget.energy < 1e-6 * problem.forget.energy:
        raise NothingLeft("the forget prompts look like what is protected: nothing can be erased")
    F = forget.root
    solved = problem.retain.outside(kept).inverse(problem.retain.ridge(epsilon))(F)
    inner = F.T @ solved
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    have = int((values > 1e-10 * values[0]).sum())
    U = solved @ (vectors[:, :have] / values[:have].sqrt())
    return values[:have], U - kept @ (kept.T @ U)
