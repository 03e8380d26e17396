"""Problem: all that a closed-form method may look at."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from erase_sd.moments import SecondMoment


class NothingLeft(ValueError):
    """Everything that was to be forgotten lies inside what is protected."""


def _none(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """What to forget and what to keep, as numbers; rows are features of width `d`.

    Attributes:
        forget: Moment of the forget prompts' token states.
        retain: Moment of the states to keep.
        null: `(m, d)` states of the empty prompt, BOS included.
        concepts: `(c, d)` last-subject state of each forget prompt.
        anchors: `(c, d)` where methods with targets move each concept.
        kept: `(p, d)` last-subject state of each listed retain prompt.
        weight_gram: `(d, d)` sum of `Wᵀ W` over the weights to be edited; zeros if not gathered.
    """

    forget: SecondMoment
    retain: SecondMoment
    null: Tensor = field(default_factory=lambda: _none(0, 0))
    concepts: Tensor = field(default_factory=lambda: _none(0, 0))
    anchors: Tensor = field(default_factory=lambda: _none(0, 0))
    kept: Tensor = field(default_factory=lambda: _none(0, 0))
    weight_gram: Tensor = field(default_factory=lambda: _none(0, 0))

    def __post_init__(self) -> None:
        if self.forget.count <= 0 or float(self.forget.gram.trace()) <= 0:
            raise ValueError("there is nothing to forget: the forget features are empty or zero")
        if self.retain.width != self.width:
            raise ValueError(f"expected retain features of width {self.width}, got {self.retain.width}")
        for name in ("null", "concepts", "anchors", "kept", "weight_gram"):
            value = getattr(self, name).to(torch.float64)
            object.__setattr__(self, name, value if value.numel() else _none(0, self.width))

    @property
    def width(self) -> int:
        """Feature dimension `d`."""
        return self.forget.width
