"""The two-sided edit: the concept is not read where text says it, and not written whatever is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem, unprotected
from erase_sd.algebra.quotient import quotient


@dataclass(frozen=True)
class Options:
    """Options of the two-sided edit.

    Attributes:
        mu: How much the concept weighs against ordinary text on the right.
        epsilon: Relative ridge on the moment of ordinary text.
        cut: Gains below this are left out, which keeps the rank low.
        left: Whether to close the left side too: no input can then make the values write what sets
            the concept apart.
        rho: How far the left side is freed of what ordinary outputs share; None: not at all, which
            certifies most.
        null_energy: Share of the empty prompt's outputs, in squared norm, that a left side may
            touch.
    """

    mu: float = 1.0
    epsilon: float = 1e-3
    cut: float = 0.02
    left: bool = False
    rho: float | None = None
    null_energy: float = 3e-4

    def __post_init__(self) -> None:
        within("mu", self.mu, 1e-9, 1e9)
        within("epsilon", self.epsilon, 1e-12, 1e12)
        within("cut", self.cut, 0, 1)
        within("rho", self.rho, 1e-6, 1e12)
        within("null_energy", self.null_energy, 0, 1)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T = I − Σ gᵢ (C_f uᵢ / vᵢ) uᵢᵀ` with `gᵢ = μ vᵢ / (1 + μ vᵢ)`: no direction is overshot.

    `C_f u = v C u` on the directions that may be read, `UᵀCU = I`. This is the least-squares answer
    `C (C + μ C_f)⁻¹` under exact protection, of low rank because small gains are left out.

    Raises:
        NothingLeft: If the forget prompts look like what is protected.
    """
    values, U = quotient(problem, unprotected(problem), options.epsilon)
    gains = options.mu * values / (1 + options.mu * values)
    keep = gains >= min(options.cut, float(gains[0]))
    carriers = problem.forget.matrix @ U[:, keep] / values[keep]
    return LowRankEdit(carriers * gains[keep], U[:, keep])


def left(weight: Tensor, problem: Problem, options: Options) -> LowRankEdit:
    """`L = I − b bᵀ`, `b` an orthonormal basis of what sets the concepts apart in a weight's outputs.

    `b` spans `P W c` for the contrasts `c`, `P` the projector off what the weight makes of the
    protected states. Since `bᵀ L = 0`, `bᵀ L W T x = 0` for every input `x`. Of all maps that never
    write along `b` this one changes any other output least. With a finite ρ, `b` is first freed of
    what ordinary outputs share: `b ← P (W C Wᵀ + ρ s I)⁻¹ b`, `s` the mean eigenvalue.

    Args:
        weight: `(d_out, d)`; columns past the features' width read no text.
        problem: Its `contrast`, `null`, `named` and `retain` are used.
        options: See `Options`.
    """
    W = weight[:, : problem.width].to(torch.float64).cpu()
    protected = torch.cat([problem.null, problem.named]) @ W.T
    free = _complement(protected, options.null_energy, W.shape[0])
    b = free.T @ (W @ problem.contrast.T)
    if options.rho is not None:
        C = free.T @ W @ problem.retain.matrix @ W.T @ free
        ridge = options.rho * C.trace() / len(C)
        b = torch.linalg.solve(C + ridge * torch.eye(len(C), dtype=torch.float64), b)
    basis, sizes, _ = torch.linalg.svd(b, full_matrices=False)
    b = free @ basis[:, sizes > 1e-6 * sizes[0]]
    return LowRankEdit(b, b)


def _complement(rows: Tensor, energy: float, width: int) -> Tensor:
    """Orthonormal basis `(d, m)` of the directions that hold at most `energy` of some rows."""
    if not len(rows):
        return torch.eye(width, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return vectors[:, values.clamp(min=0).cumsum(0) <= max(energy, 1e-12) * values.sum()]
