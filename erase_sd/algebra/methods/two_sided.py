"""The two-sided edit: the concept is not read where text says it, and not written whatever is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem, unprotected
from erase_sd.algebra.quotient import quotient

_HALVINGS = 60  # of the search for the least penalty, in powers of ten


@dataclass(frozen=True)
class Options:
    """Options of the two-sided edit.

    Attributes:
        mu: How much each forget prompt weighs against ordinary text on the right.
        epsilon: Relative ridge on the moment of ordinary text.
        rank: Number of directions on the right; None takes all whose gain is at least `cut`.
        cut: See `rank`; it keeps the rank low.
        left: Whether to close the left side too: no input can then make the values write what sets
            the concept apart.
        spare: How much the left side is freed of what other things are drawn with; 0 closes most
            and harms most.
        move: How far a left side may move the empty prompt's outputs, relative to their norm.
    """

    mu: float = 0.3
    epsilon: float = 1e-4
    rank: int | None = None
    cut: float = 0.2
    left: bool = False
    spare: float = 10.0
    move: float = 0.009

    def __post_init__(self) -> None:
        within("mu", self.mu, 1e-9, 1e9)
        within("epsilon", self.epsilon, 1e-12, 1e12)
        within("rank", self.rank, 1)
        within("cut", self.cut, 0, 1)
        within("spare", self.spare, 0, 1e9)
        within("move", self.move, 1e-9, 1)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T = I − Σ gᵢ (C_f uᵢ / vᵢ) uᵢᵀ` with `gᵢ = μ vᵢ / (1 + μ vᵢ)`: no direction is overshot.

    `C_f u = v C u` on the directions that may be read, `UᵀCU = I`. This is the least-squares answer
    `C (C + μ C_f)⁻¹` under exact protection, of low rank because small gains are left out. The forget
    moment is a mean over prompts; μ is for each of them, so that a family's members do not share it.

    Raises:
        NothingLeft: If the forget prompts look like what is protected.
        ValueError: If `rank` is beyond what the forget prompts span.
    """
    values, U = quotient(problem, unprotected(problem), options.epsilon)
    mu = options.mu * max(1, len(problem.concepts))
    gains = mu * values / (1 + mu * values)
    rank = options.rank or max(1, int((gains >= options.cut).sum()))
    if rank > len(gains):
        raise ValueError(
            f"rank {rank} asked, but the forget prompts span {len(gains)} unprotected dimensions"
        )
    carriers = problem.forget.matrix @ U[:, :rank] / values[:rank]
    return LowRankEdit(carriers * gains[:rank], U[:, :rank])


def left(weight: Tensor, problem: Problem, options: Options) -> LowRankEdit:
    """`L = I − b bᵀ` with a unit `b` along what sets the concept apart in a weight's outputs.

    Since `bᵀ L = 0`, `bᵀ L W T x = 0` for every input `x`; and of all maps that never write along `b`,
    this one changes any other output least. `b ∝ (I + spare · S + ℓ K)⁻¹ W c` for the contrast `c`:
    `S` is the moment of what other things are drawn with, `K` that of the protected states' outputs,
    and `ℓ` the least penalty that keeps these to `move`.

    Args:
        weight: `(d_out, d)`; columns past the features' width read no text.
        problem: Its `contrast`, `drawn`, `null` and `named` are used.
        options: See `Options`.
    """
    W = weight[:, : problem.width].to(torch.float64).cpu()
    others = W @ problem.drawn.T
    A = torch.eye(len(W), dtype=torch.float64) + options.spare * others @ others.T
    kept = [W @ rows.T for rows in (problem.null, problem.named) if len(rows)]
    Y = torch.cat([y / y.norm().clamp(min=1e-300) for y in kept] or [W[:, :0]], dim=1)
    L = torch.linalg.cholesky(A)
    z = torch.cholesky_solve((W @ problem.contrast.mean(0))[:, None], L)
    b = _within(z, torch.cholesky_solve(Y, L), Y, options.move)
    return LowRankEdit(b, b)


def _within(z: Tensor, Z: Tensor, Y: Tensor, move: float) -> Tensor:
    """The unit vector along `(A + ℓ Y Yᵀ)⁻¹ c` with the least `ℓ` for which `‖Yᵀ b‖ ≤ move`.

    Args:
        z: `A⁻¹ c`, `(d, 1)`.
        Z: `A⁻¹ Y`, `(d, m)`.
        Y: `(d, m)`.
        move: Bound.
    """
    gamma, E = torch.linalg.eigh(Y.T @ Z)  # Woodbury: one small decomposition serves every ℓ
    gamma, h = gamma.clamp(min=0), E.T @ (Y.T @ z)
    basis = Z @ E
    low, high, best = -12.0, 16.0, z / z.norm()
    if not len(gamma) or float((Y.T @ best).norm()) <= move:
        return best
    for _ in range(_HALVINGS):  # the movement falls with ℓ
        penalty = 10 ** ((low + high) / 2)
        b = z - basis @ (penalty / (1 + penalty * gamma)[:, None] * h)
        b = b / b.norm()
        if float((Y.T @ b).norm()) > move:
            low = (low + high) / 2
        else:
            high, best = (low + high) / 2, b
    return best
