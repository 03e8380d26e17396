"""Second moments of feature rows: all that the closed-form methods need to know about data.

Fewer rows than features are kept as they are, weighted; then whatever is solved is solved in their
span, and no matrix of `d × d` is made. More of them are summed into one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.algebra.solving import in_span, solver

DENSE = 8192  # widest features of which a matrix d × d is made: half a gigabyte


def check_dense(width: int) -> None:
    """Refuse what would need a matrix of too many features by as many.

    Raises:
        ValueError: If `width` is above `DENSE`.
    """
    if width > DENSE:
        raise ValueError(
            f"this needs a matrix of features by features, which is made for at most {DENSE}; got "
            f"{width}: fewer prompts, or another method, do without it"
        )


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """Sums over feature rows, in float64.

    Streaming is addition: `moment + SecondMoment.of(batch)`. Two processes merge by `+`; what was
    added is taken out by `-`. Up to `d` rows are held one by one, and only beyond that as a sum:
    every method gives the same for both.

    Attributes:
        held: `(n, d)` the rows; or `(d, d)`, the sum of `x xᵀ`, if there are no `weights`.
        weights: `(n,)` how much each row counts; negative for one that was taken out.
        total: `(d,)`, the sum of `x`.
        count: How many rows (or how much weight) went in.

    Example:
        >>> moment = SecondMoment.of(torch.eye(3)[:2])
        >>> moment.gram.diagonal().tolist(), moment.count
        ([1.0, 1.0, 0.0], 2.0)
    """

    held: Tensor
    weights: Tensor | None
    total: Tensor
    count: float

    @classmethod
    def zeros(cls, width: int) -> SecondMoment:
        """The moment of no rows of width `width`."""
        return cls.of(torch.zeros(0, width))

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None = None) -> SecondMoment:
        """The moment of rows of any float dtype.

        Args:
            rows: `(n, d)`.
            weights: `(n,)` how much each counts; None for 1.

        Raises:
            ValueError: If the rows are not a matrix or not finite.
        """
        if rows.ndim != 2:
            raise ValueError(f"expected rows of shape (n, d), got {tuple(rows.shape)}")
        rows = rows.to(torch.float64)
        if not torch.isfinite(rows).all():
            raise ValueError(
                "the features hold NaN or infinite values; is the text encoder intact?"
            )
        weights = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights
        weights = weights.to(rows)
        return cls(rows, weights, weights @ rows, float(weights.sum()))._settled()

    @classmethod
    def summed(cls, gram: Tensor, total: Tensor, count: float) -> SecondMoment:
        """The moment of rows that only their sums are left of: `gram (d, d)` and `total (d,)`."""
        return cls(gram, None, total, count)

    def _settled(self) -> SecondMoment:
        """The same, summed if more rows than features are held."""
        few = self.weights is None or len(self.held) <= self.width
        return self if few else SecondMoment.summed(self.gram, self.total, self.count)

    def __add__(self, other: SecondMoment) -> SecondMoment:
        return self._with(other, 1.0)

    def __sub__(self, other: SecondMoment) -> SecondMoment:
        return self._with(other, -1.0)

    def _with(self, other: SecondMoment, sign: float) -> SecondMoment:
        if self.width != other.width:
            raise ValueError(
                f"moments of different width: expected {self.width}, got {other.width}"
            )
        total, count = self.total + sign * other.total, self.count + sign * other.count
        if self.weights is None or other.weights is None:
            return SecondMoment.summed(self.gram + sign * other.gram, total, count)
        rows = torch.cat([self.held, other.held])
        weights = torch.cat([self.weights, sign * other.weights])
        return SecondMoment(rows, weights, total, count)._settled()

    def weighing(self, count: float) -> SecondMoment:
        """The same rows, weighted to count as so many."""
        scale = count / self.count
        if self.weights is None:
            return SecondMoment.summed(self.held * scale, self.total * scale, count)
        return SecondMoment(self.held, self.weights * scale, self.total * scale, count)

    def leaving_out(self, indices: Sequence[int]) -> SecondMoment:
        """The same without some rows, which must still be held one by one.

        Raises:
            ValueError: If they are not.
        """
        if self.weights is None:
            raise ValueError("expected rows held one by one, got their sum")
        weights = self.weights.clone()
        weights[list(indices)] = 0
        return SecondMoment(self.held, weights, weights @ self.held, float(weights.sum()))

    def outside(self, basis: Tensor) -> SecondMoment:
        """The moment of the rows' parts that are orthogonal to `basis (d, q)`, orthonormal."""
        total = self.total - basis @ (basis.T @ self.total)
        if self.weights is not None:
            rows = self.held - (self.held @ basis) @ basis.T
            return SecondMoment(rows, self.weights, total, self.count)
        across = self.held @ basis
        gram = self.held - across @ basis.T - basis @ across.T
        gram += basis @ (basis.T @ across) @ basis.T
        return SecondMoment.summed(gram, total, self.count)

    @property
    def width(self) -> int:
        """Feature dimension `d`."""
        return self.total.shape[0]

    @property
    def gram(self) -> Tensor:
        """`(d, d)`, the sum of `x xᵀ`.

        Raises:
            ValueError: If the rows are wider than `DENSE` and only held one by one.
        """
        if self.weights is None:
            return self.held
        check_dense(self.width)
        return (self.held.T * self.weights) @ self.held

    @property
    def matrix(self) -> Tensor:
        """`C = Xᵀ X / n`, `(d, d)`; zeros when nothing went in."""
        return self.gram / max(self.count, 1e-300)

    @property
    def mean(self) -> Tensor:
        """Mean row, `(d,)`."""
        return self.total / max(self.count, 1e-300)

    @property
    def energy(self) -> float:
        """`tr C`: the rows' mean squared norm."""
        if self.weights is None:
            whole = self.held.trace()
        else:
            whole = self.weights @ torch.linalg.vector_norm(self.held, dim=1).square()
        return float(whole) / max(self.count, 1e-300)

    def ridge(self, epsilon: float) -> float:
        """`ε tr C / d`: relative, so that a rescaled feature changes nothing."""
        return epsilon * self.energy / self.width

    def times(self, columns: Tensor) -> Tensor:
        """`C V` for `V (d, k)`."""
        if self.weights is None:
            product = self.held @ columns
        else:
            product = self.held.T @ (self.weights[:, None] * (self.held @ columns))
        return product / max(self.count, 1e-300)

    @functools.cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues `(r,)` of `C`, descending, and eigenvectors `(d, r)`, `r ≤ d`.

        Rows that are held one by one have no others than those in their span.
        """
        if self.weights is None or len(self.held) == self.width:
            values, vectors = torch.linalg.eigh(self.matrix)
        else:
            basis, R = torch.linalg.qr(self.held.T)
            inner = (R * self.weights) @ R.T / max(self.count, 1e-300)
            values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
            vectors = basis @ vectors
        return values.flip(0), vectors.flip(1)

    @property
    def root(self) -> Tensor:
        """`F (d, r)` with `F Fᵀ = C`."""
        if self.weights is not None and bool((self.weights >= 0).all()):
            return self.held.T * (self.weights / max(self.count, 1e-300)).sqrt()
        values, vectors = self.eigen
        return vectors * values.clamp(min=0).sqrt()

    def inverse(self, ridge: float) -> Callable[[Tensor], Tensor]:
        """`V → (C + ridge I)⁻¹ V` for `V (d, k)`."""
        if self.weights is None:
            return solver(self.matrix, ridge)
        return in_span(self.held, self.weights / self.count, ridge)

    def subspace(self, rank: int) -> Tensor:
        """Top `rank` eigenvectors of `C` (uncentred), `(d, rank)`, orthonormal.

        Raises:
            ValueError: If the rows span fewer than `rank` dimensions.
        """
        values, vectors = self.eigen
        have = int((values > 1e-12 * values[:1].clamp(min=0)).sum())
        if not 1 <= rank <= have:
            raise ValueError(
                f"rank {rank} asked, but the forget prompts span {have} dimensions; lower the "
                "rank or add prompts"
            )
        return vectors[:, :rank]


def together(moments: Iterable[SecondMoment]) -> SecondMoment:
    """The moment of all their rows.

    Example:
        >>> together([SecondMoment.of(torch.eye(2)), SecondMoment.of(torch.ones(1, 2))]).count
        3.0
    """
    return functools.reduce(SecondMoment.__add__, moments)


def evenly(*moments: SecondMoment) -> SecondMoment:
    """The moment of all their rows, weighted so that each that has any counts as much as another.

    Example:
        >>> evenly(SecondMoment.of(torch.eye(2)), SecondMoment.of(torch.ones(1, 2))).matrix
        tensor([[0.7500, 0.5000],
                [0.5000, 0.7500]], dtype=torch.float64)
    """
    some = [m for m in moments if m.count] or list(moments[:1])
    share = sum(m.count for m in some) / len(some)
    return together(m.weighing(share) if m.count else m for m in some)


def orthonormal(rows: Tensor, *, energy: float = 1e-10) -> Tensor:
    """Orthonormal basis of the span of `rows`, `(d, q)`, the strongest directions first.

    See `strongest` for `energy`.
    """
    return strongest(SecondMoment.of(rows), energy)


def strongest(moment: SecondMoment, energy: float) -> Tensor:
    """Top eigenvectors of `C`, `(d, q)`, orthonormal, the strongest first.

    Directions that hold less than `energy` of the rows' total squared norm are dropped; the rows'
    part outside the basis then has at most that share.
    """
    values, vectors = moment.eigen
    values = values.clamp(min=0)
    weaker = values.flip(0).cumsum(0).flip(0)  # what a direction and all weaker ones hold
    return vectors[:, weaker > energy * values.sum()]
