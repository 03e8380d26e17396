"""Unlink with retained data: the generalized Rayleigh quotient, in a form that is a projection."""

from __future__ import annotations

import warnings

import torch

from erase_sd.edit import LowRankEdit
from erase_sd.methods.problem import NothingLeft, Problem
from erase_sd.methods.unlink import complement


def rayleigh(
    problem: Problem,
    *,
    rank: int = 0,
    share: float = 0.1,
    epsilon: float = 1e-3,
    variant: str = "hard",
    protect_null: bool = True,
) -> LowRankEdit:
    """Solve `C_f u = λ C u`, `C = C_r + ε (tr C_r / d) I`, and remove what the top `u` detect.

    The `u` are C-orthonormal, so they *detect* the concept; what *carries* it is `C_f u / λ`, which
    equals `C u` where nothing is constrained. Hence `P = C U D Uᵀ`, `T = I − P`:

    - "hard": `D = I`. `P² = P`; of all maps that zero the carriers, the least harm to retain.
    - "lsq": `D = diag(λ / (1 + λ))` over all directions: `T = C (C + C_f)⁻¹`.
    - "paper": Eq. 15 as printed, `U diag(min(1, λ)) Uᵀ`. Not a projection: it overshoots by orders
      of magnitude and depends on the features' scale. For comparison only.

    Args:
        problem: Forget and retain moments; `null` rows are fixed exactly if `protect_null`.
        rank: Number of directions `k` (not used by "lsq"); 0 takes all whose λ is at least `share` of the
            first: one concept has one or two, a family as many as it has members.
        share: See `rank`.
        epsilon: Relative ridge; towards infinity "hard" becomes Unlink.
        variant: "hard", "lsq" or "paper".
        protect_null: Solve on the orthogonal complement of the empty prompt's states.

    Source: Unlearn in a Blink, Eq. 12-15; the correction is derived in docs/methods.md.
    """
    if variant not in ("hard", "lsq", "paper"):
        raise ValueError(f"expected variant 'hard', 'lsq' or 'paper', got {variant!r}")
    width = problem.width
    free = protect_null and variant != "paper" and len(problem.null) > 0
    Q = complement(problem.null, width) if free else torch.eye(width, dtype=torch.float64)
    forget = Q.T @ problem.forget.matrix @ Q
    C = Q.T @ problem.retain.ridged(epsilon) @ Q
    if float(forget.trace()) < 1e-6 * float(problem.forget.matrix.trace()):
        raise NothingLeft("the forget prompts look like the empty prompt, which is protected: nothing can be erased")
    L = torch.linalg.cholesky(C)
    whitened = torch.linalg.solve_triangular(L, forget, upper=False)
    whitened = torch.linalg.solve_triangular(L, whitened.T, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    have = int((values > 1e-10 * values[0]).sum())
    if variant == "lsq":
        rank = have
    elif rank == 0:
        rank = int((values >= share * values[0]).sum())
    if not 1 <= rank <= have:
        raise ValueError(f"rank {rank} asked, but the forget prompts span {have} unprotected dimensions")
    lam = values[:rank]
    U = Q @ torch.linalg.solve_triangular(L.T, vectors[:, :rank], upper=True)  # UᵀCU = I
    if variant == "paper":
        warnings.warn("variant 'paper' is Eq. 15 as printed; it is no projection and damages models", stacklevel=2)
        return LowRankEdit(U * lam.clamp(max=1), U)
    carrier = problem.forget.matrix @ U / lam
    gain = lam / (1 + lam) if variant == "lsq" else torch.ones_like(lam)
    return LowRankEdit(carrier * gain, U)
