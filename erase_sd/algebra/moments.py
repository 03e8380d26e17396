"""Second moments of feature rows: all that the closed-form methods need to know about data."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """Sums over feature rows, in float64.

    Streaming is addition: `moment + SecondMoment.of(batch)`. Two processes merge by `+`; what was
    added is taken out by `-`.

    Attributes:
        gram: `(d, d)`, the sum of `x xᵀ`.
        total: `(d,)`, the sum of `x`.
        count: How many rows (or how much weight) went in.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> (SecondMoment.of(rows[:1]) + SecondMoment.of(rows[1:])).gram
        tensor([[1., 0.],
                [0., 4.]], dtype=torch.float64)
    """

    gram: Tensor
    total: Tensor
    count: float

    @classmethod
    def zeros(cls, width: int) -> SecondMoment:
        """The moment of no rows of width `width`."""
        double = torch.float64
        return cls(torch.zeros(width, width, dtype=double), torch.zeros(width, dtype=double), 0.0)

    @classmethod
    def of(cls, rows: Tensor) -> SecondMoment:
        """The moment of `rows`, `(n, d)` of any float dtype.

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
        return cls(rows.T @ rows, rows.sum(0), float(len(rows)))

    def __add__(self, other: SecondMoment) -> SecondMoment:
        self._check(other)
        return SecondMoment(
            self.gram + other.gram, self.total + other.total, self.count + other.count
        )

    def __sub__(self, other: SecondMoment) -> SecondMoment:
        self._check(other)
        return SecondMoment(
            self.gram - other.gram, self.total - other.total, self.count - other.count
        )

    def _check(self, other: SecondMoment) -> None:
        if self.width != other.width:
            raise ValueError(
                f"moments of different width: expected {self.width}, got {other.width}"
            )

    def weighing(self, count: float) -> SecondMoment:
        """The same rows, weighted to count as so many."""
        scale = count / self.count
        return SecondMoment(self.gram * scale, self.total * scale, count)

    @property
    def width(self) -> int:
        """Feature dimension `d`."""
        return self.gram.shape[0]

    @property
    def matrix(self) -> Tensor:
        """`C = Xᵀ X / n`, `(d, d)`; zeros when nothing went in."""
        return self.gram / max(self.count, 1e-300)

    @property
    def mean(self) -> Tensor:
        """Mean row, `(d,)`."""
        return self.total / max(self.count, 1e-300)

    @property
    def spectrum(self) -> Tensor:
        """Eigenvalues of `C`, descending, clamped at zero, `(d,)`."""
        return torch.linalg.eigvalsh(self.matrix).flip(0).clamp(min=0)

    def ridged(self, epsilon: float) -> Tensor:
        """`C + ε (tr C / d) I`: the ridge is relative, so a rescaled feature changes nothing."""
        ridge = epsilon * self.matrix.trace() / self.width
        return self.matrix + ridge * torch.eye(self.width, dtype=torch.float64)

    def subspace(self, rank: int) -> Tensor:
        """Top `rank` eigenvectors of `C` (uncentred), `(d, rank)`, orthonormal.

        Raises:
            ValueError: If the rows span fewer than `rank` dimensions.
        """
        values, vectors = torch.linalg.eigh(self.matrix)
        top = values[-1].clamp(min=0)
        have = int((values > 1e-12 * top).sum()) if top > 0 else 0
        if not 1 <= rank <= have:
            raise ValueError(
                f"rank {rank} asked, but the forget prompts span {have} dimensions; lower the "
                "rank or add prompts"
            )
        return vectors[:, -rank:].flip(1)


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
    """Orthonormal basis of the span of `rows`, `(d, q)`.

    Directions that hold less than `energy` of the rows' total squared norm are dropped; the rows'
    part outside the basis then has at most that share.
    """
    values, vectors = torch.linalg.eigh(rows.T.to(torch.float64) @ rows.to(torch.float64))
    values = values.clamp(min=0)
    keep = values.cumsum(0) > energy * values.sum()  # ascending: the smallest go first
    return vectors[:, keep]
