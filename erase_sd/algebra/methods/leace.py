"""LEACE: the smallest linear change after which no linear probe tells forget from retain."""

from __future__ import annotations

from dataclasses import dataclass, replace

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem


@dataclass(frozen=True)
class Options:
    """Options of LEACE.

    Attributes:
        tolerance: Eigenvalues of the covariance below this share of the first count as zero.
    """

    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        within("tolerance", self.tolerance, 0, 1)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`x → x − W⁺ u uᵀ W x`, `W = Σ_xx^(−1/2)`, `u ∝ W Σ_xz`, z = "is a forget row".

    Both classes get equal weight. LEACE also re-adds the mean, `+ W⁺ u uᵀ W μ`; a key or value
    projection has no bias to hold it, so it is left out.

    Source: arXiv 2306.03819, Theorem 4.2.

    Raises:
        ValueError: If there are no retain features.
    """
    f, r = problem.forget, problem.retain
    if r.count <= 0:
        raise ValueError("LEACE needs retain features as its second class")
    mean = (f.mean + r.mean) / 2
    spread = f.weighing(0.5) + r.weighing(0.5) - SecondMoment.of(mean[None])
    covariance = replace(spread, count=1.0)  # what is left is centred, and counted as one
    cross = (f.mean - r.mean) / 4  # Cov(x, z) for two classes of weight 1/2
    values, vectors = covariance.eigen
    keep = values > options.tolerance * values[0]
    root, basis = values[keep].sqrt(), vectors[:, keep]
    u = (basis.T @ cross) / root
    u = u / u.norm()
    return LowRankEdit(((basis * root) @ u)[:, None], ((basis / root) @ u)[:, None])
