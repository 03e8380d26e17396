"""Soft projections whose importances come from the spectrum, as GF and CURE use them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from erase_sd.algebra.moments import SecondMoment


@dataclass(frozen=True, eq=False)
class Importance:
    """`P = V diag(p) Vᵀ`, a projection that weighs its directions.

    Attributes:
        weights: `(r,)` `p`, between 0 and 1.
        vectors: `(d, r)` `V`, orthonormal.
    """

    weights: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, moment: SecondMoment, alpha: float) -> Importance:
        """`p = α s / ((α − 1) s + 1)`, `s` the normalised energies."""
        values, vectors = moment.eigen
        values = values.clamp(min=0)
        energy = values / values.sum().clamp(min=1e-300)
        some = energy > 1e-16  # the rest is rounding
        energy = energy[some]
        return cls(alpha * energy / ((alpha - 1) * energy + 1), vectors[:, some])

    def outside(self, columns: Tensor) -> Tensor:
        """`(I − P) X` for `X (d, k)`."""
        return columns - self.vectors @ (self.weights[:, None] * (self.vectors.T @ columns))
