"""LowRankEdit: the one map `T = I − A Bᵀ` that every closed-form method returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRankEdit:
    """`T = I − A Bᵀ`, acting on columns `x → T x` and on weights `W → W T`.

    Attributes:
        A: `(d, k)` float64; the directions that are written away.
        B: `(d, k)` float64; the directions that detect them.

    Example:
        >>> e = torch.eye(3, 1, dtype=torch.float64)
        >>> LowRankEdit(e, e).apply_to_features(torch.ones(1, 3, dtype=torch.float64))
        tensor([[0., 1., 1.]], dtype=torch.float64)
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.A.shape != self.B.shape:
            raise ValueError(
                f"expected A and B of one shape (d, k), got {tuple(self.A.shape)} and "
                f"{tuple(self.B.shape)}"
            )
        if not (torch.isfinite(self.A).all() and torch.isfinite(self.B).all()):
            raise ValueError("the edit holds NaN or infinite values")
        object.__setattr__(self, "A", self.A.to(torch.float64))
        object.__setattr__(self, "B", self.B.to(torch.float64))

    @classmethod
    def identity(cls, width: int) -> LowRankEdit:
        """The edit of rank 0 that changes nothing."""
        empty = torch.zeros(width, 0, dtype=torch.float64)
        return cls(empty, empty)

    @property
    def width(self) -> int:
        """Feature dimension `d`."""
        return self.A.shape[0]

    @property
    def rank(self) -> int:
        """Number of columns `k`."""
        return self.A.shape[1]

    @property
    def matrix(self) -> Tensor:
        """Dense `T`, `(d, d)` float64."""
        return torch.eye(self.width, dtype=torch.float64) - self.A @ self.B.T

    @property
    def norm(self) -> float:
        """Spectral norm `‖T‖₂`: 1 for an orthogonal projection, larger for an oblique one."""
        if self.rank == 0:
            return 1.0
        # T acts as the identity outside span[A, B]; inside it, T is a small matrix.
        q, _ = torch.linalg.qr(torch.cat([self.A, self.B], dim=1))
        inside = torch.eye(q.shape[1], dtype=torch.float64) - (q.T @ self.A) @ (self.B.T @ q)
        return max(
            float(torch.linalg.matrix_norm(inside, 2)), 1.0 if q.shape[1] < self.width else 0.0
        )

    @property
    def gains(self) -> Tensor | None:
        """`(k,)` how far each direction goes if `BᵀA` is diagonal (1: projected out), else None."""
        D = self.B.T @ self.A
        gains = D.diagonal()
        size = max(float(gains.abs().max()), 1e-300) if self.rank else 1.0
        off = D - torch.diag(gains)
        return gains if self.rank == 0 or float(off.abs().max()) <= 1e-6 * size else None

    def scaled(self, strength: float) -> LowRankEdit:
        """`I − s A Bᵀ`: 0 changes nothing, 1 is this edit, above 1 pushes past it."""
        return LowRankEdit(strength * self.A, self.B)

    def apply_to_features(self, rows: Tensor) -> Tensor:
        """`T x` for each row, `(…, d)`; computed in the rows' dtype, float32 at least."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        A, B = self.A.to(rows.device, dtype), self.B.to(rows.device, dtype)
        x = rows.to(dtype)
        return (x - (x @ B) @ A.T).to(rows.dtype)

    def apply_to_weight(self, weight: Tensor) -> Tensor:
        """`W T = W − (W A) Bᵀ`, `(d_out, d)`; in float32 at least, cast to W's dtype last.

        Raises:
            ValueError: If the weight has another width or is not finite.
        """
        if weight.ndim != 2 or weight.shape[1] != self.width:
            raise ValueError(
                f"expected a weight of shape (d_out, {self.width}), got {tuple(weight.shape)}"
            )
        if not torch.isfinite(weight).all():
            raise ValueError("the weight holds NaN or infinite values; the checkpoint is damaged")
        if self.rank == 0:
            return weight.clone()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        A, B = self.A.to(weight.device, dtype), self.B.to(weight.device, dtype)
        w = weight.to(dtype)
        return (w - (w @ A) @ B.T).to(weight.dtype)

    def rounded(self) -> LowRankEdit:
        """The same with factors that float32 holds exactly.

        What a file stores is what was certified.
        """
        return LowRankEdit(self.A.float(), self.B.float())

    def trimmed(self, tolerance: float = 1e-9) -> LowRankEdit:
        """The same by the thin SVD of `A Bᵀ`, singular values below a share of the first dropped.

        >>> twice = torch.ones(4, 2)
        >>> LowRankEdit(twice, twice).trimmed().rank
        1
        """
        (a, left), (b, right) = torch.linalg.qr(self.A), torch.linalg.qr(self.B)
        u, s, vh = torch.linalg.svd(left @ right.T)
        keep = s > tolerance * s[:1].clamp(min=1e-300)
        return LowRankEdit(a @ (u[:, keep] * s[keep]), b @ vh[keep].T)

    def then(self, other: LowRankEdit) -> LowRankEdit:
        """`other.T @ self.T`: this edit first; not commutative (see `joint`)."""
        # (I − A₂B₂ᵀ)(I − A₁B₁ᵀ) = I − [A₁ − A₂B₂ᵀA₁, A₂] [B₁, B₂]ᵀ
        A = torch.cat([self.A - other.A @ (other.B.T @ self.A), other.A], dim=1)
        return LowRankEdit(A, torch.cat([self.B, other.B], dim=1))


def joint(edits: Sequence[LowRankEdit]) -> LowRankEdit:
    """Combine edits so that their order does not matter and any of them can be left out again.

    An edit whose `BᵀA` is diagonal removes carriers `A / g` with gains `g`. With all carriers `A₀`
    and detectors `B` side by side, `G = BᵀA₀`, and gains in (0, 1], the joint edit is
    `I − A₀ (G + diag(1/g − 1))⁻¹ Bᵀ`. For projections (`g = 1`) it is the projection along all
    carriers at once; for edits that are least-squares optimal under one metric it is again the
    least-squares optimum (docs/methods.md, "Several concepts"). Gains above 1 overshoot: there each
    edit keeps its own, `I − A₀ diag(g) G⁻¹ Bᵀ`. Edits that are no such projections (UCE and its kin
    move a concept rather than remove it) are superposed, `I − Σ A Bᵀ`, as stacked LoRAs are. One
    edit comes back as it was.

    Args:
        edits: At least one, of one width.

    Raises:
        ValueError: If there is none, or their widths differ.

    Example:
        >>> e = torch.eye(3, dtype=torch.float64)
        >>> x, y = LowRankEdit(e[:, :1], e[:, :1]), LowRankEdit(e[:, 1:2], e[:, 1:2])
        >>> joint([x, y]).matrix.diagonal().tolist()
        [0.0, 0.0, 1.0]
    """
    if not edits:
        raise ValueError("expected at least one edit, got none")
    if len({e.width for e in edits}) > 1:
        raise ValueError(f"edits of different width: {sorted({e.width for e in edits})}")
    if len(edits) == 1:
        return edits[0]
    A = torch.cat([e.A for e in edits], dim=1)
    B = torch.cat([e.B for e in edits], dim=1)
    own = [e.gains for e in edits]
    gains = (
        torch.cat([g for g in own if g is not None]) if all(g is not None for g in own) else None
    )
    if gains is None or bool((gains <= 0).any()):
        return LowRankEdit(A, B)
    carriers = A / gains
    G = B.T @ carriers
    # pinv, not inv: two prompts with one meaning give dependent columns.
    if bool((gains <= 1 + 1e-9).all()):
        return LowRankEdit(
            carriers @ torch.linalg.pinv(G + torch.diag(1 / gains - 1), rtol=1e-10), B
        )
    return LowRankEdit((carriers * gains) @ torch.linalg.pinv(G, rtol=1e-10), B)
