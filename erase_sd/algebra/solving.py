"""Linear systems of a symmetric matrix and a ridge, whole or in the span of a few rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Solve = Callable[[Tensor], Tensor]

_REFINED = 3  # steps that a solution in the rows' span is refined by at most
_EXACT = 1e-13  # relative size of what is left at which it is not


def solver(matrix: Tensor, ridge: float | Tensor) -> Solve:
    """`V → (M + diag(ridge))⁻¹ V` of a symmetric matrix, which it may write into.

    >>> solver(torch.eye(2), 1.0)(torch.ones(2, 1)).flatten().tolist()
    [0.5, 0.5]
    """
    matrix.diagonal().add_(ridge)
    L, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return lambda V: torch.cholesky_solve(V, L)
    parts = torch.linalg.lu_factor(matrix)  # rows were taken out, or the ridge is below rounding
    return lambda V: torch.linalg.lu_solve(*parts, V)


def in_span(rows: Tensor, weights: Tensor, ridge: float) -> Solve:
    """`V → (Xᵀ diag(w) X + ridge I)⁻¹ V` by Woodbury: only `n × n` is taken apart.

    Args:
        rows: `X (n, d)`.
        weights: `w (n,)`, of either sign.
        ridge: Above 0.
    """
    roots, signs = weights.abs().sqrt()[:, None], torch.where(weights < 0, -1.0, 1.0).to(rows)
    # Xᵀ diag(w) X = Rᵀ S R, R the rows times their weights' roots and S their signs.
    solve = solver(products(rows).mul_(roots).mul_(roots.T), ridge * signs)

    def once(V: Tensor) -> Tensor:
        return (V - rows.T @ (roots * solve(roots * (rows @ V)))) / ridge

    def refined(V: Tensor) -> Tensor:  # the difference above cancels where the rows are large
        x = once(V)
        for _ in range(_REFINED):
            left = V - rows.T @ (weights[:, None] * (rows @ x)) - ridge * x
            if float(left.norm()) <= _EXACT * float(V.norm()):
                break
            x = x + once(left)
        return x

    return refined


def products(rows: Tensor, block: int = 1024) -> Tensor:
    """`X Xᵀ (n, n)`; each product is computed once."""
    found = torch.empty(len(rows), len(rows), dtype=rows.dtype)
    for at in range(0, len(rows), block):
        part = rows[at:] @ rows[at : at + block].T
        found[at:, at : at + block] = part
        found[at : at + block, at:] = part.T
    return found
