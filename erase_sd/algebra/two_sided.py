"""TwoSidedEdit: what happens to one weight, its features edited on the right.

Its outputs on the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit


@dataclass(frozen=True, eq=False)
class TwoSidedEdit:
    """`W → W + s (L W T − W)`: `T` acts on what the weight reads, `L` on what it writes.

    With `L = I − b bᵀ` and `‖b‖ = 1`, `bᵀ L W T x = 0` for *every* input `x`: no embedding, natural
    or adversarial, makes this weight write along `b`.

    Attributes:
        right: `T`, of the width of the features; it may be narrower than the weight, whose further
            columns then read no text and pass only through `L`.
        left: `L`, of the width of the outputs, or None for the identity.
        scale: `s`: 0 leaves the weight, 1 is the edit. A LoRA of weight `s` is exactly this.

    Example:
        >>> b = torch.tensor([[1.0], [0.0]])
        >>> edit = TwoSidedEdit(LowRankEdit.identity(3), LowRankEdit(b, b))
        >>> edit.apply_to_weight(torch.ones(2, 3)).tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """

    right: LowRankEdit
    left: LowRankEdit | None = None
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Rank of the weight's change."""
        return self.right.rank + (self.left.rank if self.left else 0)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`(down (k, d_in), up (d_out, k))`, float64, with `W + up down` the edited weight.

        Args:
            weight: `(d_out, d_in)`.

        Raises:
            ValueError: If the shapes do not fit.
        """
        self._check(weight)
        W = weight.to(torch.float64)
        A, B = self.right.A.to(W.device), self.right.B.to(W.device)
        down = torch.nn.functional.pad(B.T, (0, W.shape[1] - self.right.width))
        up = -(W[:, : self.right.width] @ A)
        if self.left is not None:
            a, b = self.left.A.to(W.device), self.left.B.to(W.device)
            # L W T = W T − a (bᵀ W T), with W T = W + up down
            seen = b.T @ W + (b.T @ up) @ down
            down, up = torch.cat([down, seen]), torch.cat([up, -a], dim=1)
        return down, self.scale * up

    def apply_to_weight(self, weight: Tensor) -> Tensor:
        """The edited weight; in float32 at least, cast to W's dtype last.

        Args:
            weight: `(d_out, d_in)`.

        Raises:
            ValueError: If it does not fit, is not finite, or would not be finite afterwards.
        """
        self._check(weight)
        if not bool(torch.isfinite(weight.float() if weight.element_size() == 1 else weight).all()):
            raise ValueError("the weight holds NaN or infinite values; the checkpoint is damaged")
        if self.rank == 0 or self.scale == 0:
            return weight.clone()
        width = self.right.width
        eight = weight.element_size() == 1  # float8 has no arithmetic of its own
        dtype = torch.float32 if eight else torch.promote_types(weight.dtype, torch.float32)
        w = weight.to(dtype)
        A, B = self.right.A.to(w.device, dtype), self.right.B.to(w.device, dtype)
        change = torch.zeros_like(w)
        change[:, :width] = -(w[:, :width] @ A) @ B.T
        if self.left is not None:
            a, b = self.left.A.to(w.device, dtype), self.left.B.to(w.device, dtype)
            change -= a @ (b.T @ (w + change))
        new = (w + self.scale * change).to(weight.dtype)
        if not bool(torch.isfinite(new.float() if eight else new).all()):
            raise ValueError(
                f"the edited weight is not finite in {str(weight.dtype).removeprefix('torch.')}: "
                "expected a scale and strength near 1"
            )
        return new

    def lost(self, weight: Tensor, new: Tensor) -> float:
        """What the cast to a weight's dtype loses of the edit, `‖W' − W*‖ / ‖W* − W‖`.

        Args:
            weight: `(d_out, d_in)`.
            new: What `apply_to_weight` made of it.
        """
        base = weight.double()
        exact = self.apply_to_weight(base)
        change = float((exact - base).norm())
        return float((new.double() - exact).norm()) / change if change else 0.0

    def apply_to_outputs(self, outputs: Tensor) -> Tensor:
        """`L y` for each row `y`, `(…, d_out)`; computed in the rows' dtype, float32 at least."""
        return outputs if self.left is None else self.left.apply_to_features(outputs)

    def _check(self, weight: Tensor) -> None:
        shape = tuple(weight.shape)
        if weight.ndim != 2 or shape[1] < self.right.width:
            raise ValueError(f"expected a weight of shape (d_out, {self.right.width}), got {shape}")
        if self.left is not None and shape[0] != self.left.width:
            raise ValueError(f"expected a weight of shape ({self.left.width}, d_in), got {shape}")
