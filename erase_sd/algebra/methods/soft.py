"""Soft: every direction with a gain of its own, by least squares; nothing is overshot."""

from __future__ import annotations

from dataclasses import dataclass

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem, protected
from erase_sd.algebra.quotient import quotient


@dataclass(frozen=True)
class Options:
    """Options of the soft edit.

    Attributes:
        mu: How much each forget prompt weighs against ordinary text.
        epsilon: Relative ridge on the moment of ordinary text.
        rank: Number of directions; None takes all whose gain is at least `cut`.
        cut: See `rank`; it keeps the rank low.
        protect_named: Whether the states of named retain prompts stay exactly too; it costs others.
    """

    mu: float = 0.3
    epsilon: float = 1e-4
    rank: int | None = None
    cut: float = 0.2
    protect_named: bool = False

    def __post_init__(self) -> None:
        within("mu", self.mu, 1e-9, 1e9)
        within("epsilon", self.epsilon, 1e-12, 1e12)
        within("rank", self.rank, 1)
        within("cut", self.cut, 0, 1)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T = I − Σ gᵢ (C_f uᵢ / vᵢ) uᵢᵀ` with `gᵢ = μ vᵢ / (1 + μ vᵢ)`: no direction is overshot.

    `C_f u = v C u` on the directions that may be read, `UᵀCU = I`. This is the least-squares answer
    `C (C + μ C_f)⁻¹` under exact protection, of low rank because small gains are left out. The
    forget moment is a mean over prompts; μ is for each of them, so that a family's members do not
    share it.

    Raises:
        NothingLeft: If the forget prompts look like what is protected.
        ValueError: If `rank` is beyond what the forget prompts span.
    """
    kept = protected(problem, named=options.protect_named)
    values, U = quotient(problem, kept, options.epsilon)
    mu = options.mu * max(1, len(problem.concepts))
    gains = mu * values / (1 + mu * values)
    rank = options.rank or max(1, int((gains >= options.cut).sum()))
    if rank > len(gains):
        raise ValueError(
            f"rank {rank} asked, but the forget prompts span {len(gains)} unprotected dimensions"
        )
    carriers = problem.forget.times(U[:, :rank]) / values[:rank]
    return LowRankEdit(carriers * gains[:rank], U[:, :rank])
