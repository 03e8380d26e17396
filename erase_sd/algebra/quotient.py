"""The generalized Rayleigh quotient.

Which directions tell what is to be forgotten from what is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from erase_sd.algebra.problem import NothingLeft, Problem


def quotient(problem: Problem, free: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Solve `C_f u = λ C u` on a subspace, `C = C_r + ε (tr C_r / d) I`.

    Args:
        problem: Forget and retain moments.
        free: `(d, m)` orthonormal basis of the subspace; what is orthogonal to it is protected.
        epsilon: Relative ridge.

    Returns:
        `λ (k,)` descending and positive, and `U (d, k)` with `UᵀCU = I`.

    Raises:
        NothingLeft: If the forget rows have no part in the subspace.
    """
    forget = free.T @ problem.forget.matrix @ free
    C = free.T @ problem.retain.ridged(epsilon) @ free
    if float(forget.trace()) < 1e-6 * float(problem.forget.matrix.trace()):
        raise NothingLeft("the forget prompts look like what is protected: nothing can be erased")
    L = torch.linalg.cholesky(C)
    whitened = torch.linalg.solve_triangular(L, forget, upper=False)
    whitened = torch.linalg.solve_triangular(L, whitened.T, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    have = int((values > 1e-10 * values[0]).sum())
    return values[:have], free @ torch.linalg.solve_triangular(L.T, vectors[:, :have], upper=True)
