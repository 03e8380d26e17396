"""The left side of an edit: what a weight can no longer write, whatever it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem

_HALVINGS = 60  # of the search for the least penalty, in powers of ten


@dataclass(frozen=True)
class LeftOptions:
    """Options of a left side.

    Attributes:
        spare: How much it is freed of what other things are drawn with; 0 closes most and harms
            most.
        move: How far it may move the empty prompt's outputs, relative to their norm.
    """

    spare: float = 10.0
    move: float = 0.009

    def __post_init__(self) -> None:
        within("spare", self.spare, 0, 1e9)
        within("move", self.move, 1e-9, 1)


def left_side(weight: Tensor, problem: Problem, options: LeftOptions) -> LowRankEdit:
    """`L = I − b bᵀ` with a unit `b` along what sets the concept apart in a weight's outputs.

    Since `bᵀ L = 0`, `bᵀ L W T x = 0` for every input `x`; and of all maps that never write along
    `b`, this one changes any other output least. `b ∝ (I + spare · S + ℓ K)⁻¹ W c` for the contrast
    `c`: `S` is the moment of what other things are drawn with, `K` that of the empty prompt's
    outputs, and `ℓ` the least penalty that keeps these to `move`.

    Args:
        weight: `(d_out, d)`; columns past the features' width read no text.
        problem: Its `contrast`, `drawn` and `nulls` are used.
        options: See `LeftOptions`.
    """
    W = weight[:, : problem.width].to(torch.float64).cpu()
    others = W @ problem.drawn.T
    A = torch.eye(len(W), dtype=torch.float64) + options.spare * others @ others.T
    Y = W @ problem.nulls.T
    Y = Y / Y.norm().clamp(min=1e-300)
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
