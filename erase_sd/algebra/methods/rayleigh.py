"""Unlink with retained data: the generalized Rayleigh quotient, in a form that is a projection."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem, protected
from erase_sd.algebra.quotient import quotient


@dataclass(frozen=True)
class Options:
    """Options of the Rayleigh method.

    Attributes:
        rank: Number of directions `k` (not used by "lsq"); None takes all whose λ is at least
            `share` of the
            first: one concept has one or two, a family as many as it has members.
        share: See `rank`.
        epsilon: Relative ridge; towards infinity "hard" becomes Unlink.
        variant: See `solve`.
        protect_null: Whether the empty prompt's states stay exactly.
        protect_named: Whether the states of named retain prompts stay exactly too; it costs others.
    """

    rank: int | None = None
    share: float = 0.1
    epsilon: float = 1e-3
    variant: Literal["hard", "lsq", "paper"] = "hard"
    protect_null: bool = True
    protect_named: bool = False

    def __post_init__(self) -> None:
        within("rank", self.rank, 1)
        within("share", self.share, 0, 1)
        within("epsilon", self.epsilon, 1e-12, 1e12)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """Solve `C_f u = λ C u`, `C = C_r + ε (tr C_r / d) I`, and remove what the top `u` detect.

    The `u` are C-orthonormal, so they *detect* the concept; what *carries* it is `C_f u / λ`, which
    equals `C u` where nothing is constrained. Hence `P = C U D Uᵀ`, `T = I − P`:

    - "hard": `D = I`. `P² = P`; of all maps that zero the carriers, the least harm to retain.
    - "lsq": `D = diag(λ / (1 + λ))` over all directions: `T = C (C + C_f)⁻¹`.
    - "paper": Eq. 15 as printed, `U diag(min(1, λ)) Uᵀ`. Not a projection: it depends on the
      features' scale, and on text overshoots by orders of magnitude. For comparison only.

    Source: Unlearn in a Blink, Eq. 12-15; the correction is derived in docs/methods.md.

    Raises:
        NothingLeft: If the forget prompts look like what is protected.
        ValueError: If `rank` is beyond what the forget prompts span.
    """
    paper = options.variant == "paper"
    kept = torch.zeros(problem.width, 0, dtype=torch.float64)
    if options.protect_null and not paper:
        kept = protected(problem, named=options.protect_named)
    lam, U = quotient(problem, kept, options.epsilon)
    rank = options.rank
    if options.variant == "lsq":
        rank = len(lam)
    elif rank is None:
        rank = int((lam >= options.share * lam[0]).sum())
    if rank > len(lam):
        raise ValueError(
            f"rank {rank} asked, but the forget prompts span {len(lam)} unprotected dimensions"
        )
    lam, U = lam[:rank], U[:, :rank]
    if paper:
        warnings.warn(
            "variant 'paper' is Eq. 15 as printed; it is no projection and damages models",
            stacklevel=2,
        )
        return LowRankEdit(U * lam.clamp(max=1), U)
    carrier = problem.forget.times(U) / lam
    gain = lam / (1 + lam) if options.variant == "lsq" else torch.ones_like(lam)
    return LowRankEdit(carrier * gain, U)
