"""Unlink: project the forget prompts' top directions out; literally, deflated and oblique."""

from __future__ import annotations

import torch
from torch import Tensor

from erase_sd.edit import LowRankEdit
from erase_sd.methods.problem import NothingLeft, Problem
from erase_sd.moments import SecondMoment, orthonormal


def unlink(problem: Problem, *, rank: int = 1) -> LowRankEdit:
    """`T = I − U Uᵀ`, `U` the top `rank` right singular vectors of the uncentred forget rows.

    The first of them is the rows' mean direction, which all prompts share to a large part: on CLIP
    this takes much of every other concept along.

    Source: Unlearn in a Blink, Algorithm 1.
    """
    U = problem.forget.subspace(rank)
    return LowRankEdit(U, U)


def unlink_deflated(problem: Problem, *, rank: int = 1, energy: float = 0.01) -> LowRankEdit:
    """Unlink on `X_f (I − Q Qᵀ)`, `Q` spanning the empty prompt and the retained rows.

    Protected rows are kept to a share `energy` of their squared norm, the empty prompt to 1e-8: the
    larger `energy`, the less is protected and the more can be erased.
    """
    basis = _protected(problem, energy)
    keep = torch.eye(problem.width, dtype=torch.float64) - basis @ basis.T
    left = SecondMoment(keep @ problem.forget.gram @ keep, keep @ problem.forget.total, problem.forget.count)
    share = float(left.gram.trace() / problem.forget.gram.trace())
    if share < 1e-8:
        raise NothingLeft(
            "the forget prompts lie inside the protected span: nothing is left to erase; "
            "retain fewer prompts or raise the method's `energy`"
        )
    U = left.subspace(rank)
    return LowRankEdit(U, U)


def _protected(problem: Problem, energy: float) -> Tensor:
    """Orthonormal basis `(d, q)` of the empty prompt and of all but `energy` of the retain moment."""
    null = orthonormal(problem.null, energy=1e-8) if len(problem.null) else problem.null.T
    off = torch.eye(problem.width, dtype=torch.float64) - null @ null.T
    values, vectors = torch.linalg.eigh(off @ problem.retain.gram @ off)
    values = values.clamp(min=0)
    keep = values.cumsum(0) > energy * values.sum()
    return torch.cat([null, vectors[:, keep]], dim=1)


def unlink_oblique(problem: Problem, *, rank: int = 1, epsilon: float = 1e-3, protect_null: bool = True) -> LowRankEdit:
    """Of all maps with `T U = 0`, the one with the least `E_r ‖T x − x‖²`.

    `T = I − U (Uᵀ S⁻¹ U)⁻¹ Uᵀ S⁻¹` with `S = C_r + ε (tr C_r / d) I`. With `protect_null`, `S⁻¹` is
    taken on the orthogonal complement of the empty prompt, which `T` then fixes exactly.
    """
    U = problem.forget.subspace(rank)
    Q = complement(problem.null, problem.width) if protect_null else torch.eye(problem.width).double()
    S = Q.T @ problem.retain.ridged(epsilon) @ Q
    B = Q @ torch.linalg.solve(S, Q.T @ U)
    return LowRankEdit(U @ torch.linalg.pinv(B.T @ U), B)


def complement(rows: Tensor, width: int, *, energy: float = 1e-10) -> Tensor:
    """Orthonormal basis `(d, d − q)` of what is orthogonal to `rows`, `(m, d)`.

    Raises:
        ValueError: If the rows fill the space.
    """
    if not len(rows):
        return torch.eye(width, dtype=torch.float64)
    basis = orthonormal(rows, energy=energy)
    if basis.shape[1] >= width:
        raise ValueError("the protected states fill the whole feature space: nothing can be erased")
    full, _ = torch.linalg.qr(basis, mode="complete")
    return full[:, basis.shape[1] :]
