"""Problem: all that a closed-form method may look at."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from erase_sd.algebra.moments import SecondMoment, orthonormal


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
        other_nulls: `(m, d)` the same of other layers, which a host may feed in their place.
        concepts: `(c, d)` last-subject state of each forget prompt.
        anchors: `(c, d)` where methods with targets move each concept.
        kept: `(p, d)` last-subject state of each listed retain prompt.
        named: `(n, d)` all states of the prompts a user named to keep.
        contrast: `(m, d)` what sets each concept apart from other things: differences of mean
            states.
        drawn: `(n, d)` other things' mean states, each scaled to move the values equally in all.
        weight_gram: `(d, d)` sum of `Wᵀ W` over the weights to be edited; zeros if not gathered.
    """

    forget: SecondMoment
    retain: SecondMoment
    null: Tensor = field(default_factory=lambda: _none(0, 0))
    other_nulls: Tensor = field(default_factory=lambda: _none(0, 0))
    concepts: Tensor = field(default_factory=lambda: _none(0, 0))
    anchors: Tensor = field(default_factory=lambda: _none(0, 0))
    kept: Tensor = field(default_factory=lambda: _none(0, 0))
    named: Tensor = field(default_factory=lambda: _none(0, 0))
    contrast: Tensor = field(default_factory=lambda: _none(0, 0))
    drawn: Tensor = field(default_factory=lambda: _none(0, 0))
    weight_gram: Tensor = field(default_factory=lambda: _none(0, 0))

    def __post_init__(self) -> None:
        if self.forget.count <= 0 or self.forget.energy <= 0:
            raise ValueError("there is nothing to forget: the forget features are empty or zero")
        if self.retain.width != self.width:
            raise ValueError(
                f"expected retain features of width {self.width}, got {self.retain.width}"
            )
        for name in (
            "null",
            "other_nulls",
            "concepts",
            "anchors",
            "kept",
            "named",
            "contrast",
            "drawn",
            "weight_gram",
        ):
            value = getattr(self, name).to(torch.float64)
            object.__setattr__(self, name, value if value.numel() else _none(0, self.width))

    @property
    def width(self) -> int:
        """Feature dimension `d`."""
        return self.forget.width

    @property
    def nulls(self) -> Tensor:
        """`(m, d)` states of the empty prompt, of every layer that a host may feed."""
        return torch.cat([self.null, self.other_nulls])


NULL_ENERGY = 1e-10  # share of the empty prompt's squared norm that may be given up
NAMED_ENERGY = 1e-4  # the same of the named prompts'
NAMED_ROOM = 0.5  # share of the free directions that these may take
RESERVED = 64  # free directions that other layers' empty prompt leaves alone
OTHERS_ROOM = 0.125  # share that it may take of those beyond


def protected(problem: Problem, *, named: bool = False) -> Tensor:
    """Orthonormal basis `(d, q)` of the directions an edit may not read.

    In it lie the empty prompt's states, and those of other layers. In an encoder so narrow that the
    latter would crowd out the concepts (fewer than some 700 directions for CLIP's 77 states) only
    their strongest directions are protected.

    Args:
        problem: Its `null`, `other_nulls` and `named` are used.
        named: Whether to protect, to all but a ten-thousandth of their energy, the states of the
            prompts a user named to keep as well. Long lists take at most half of the room: then
            their strongest directions are kept. What nobody listed pays for it.

    Raises:
        ValueError: If the empty prompt's states fill the space.
    """
    width = problem.width
    kept = orthonormal(problem.null, energy=NULL_ENERGY)
    if kept.shape[1] >= width:
        raise ValueError("the protected states fill the whole feature space: nothing can be erased")
    room = int(OTHERS_ROOM * (width - kept.shape[1] - RESERVED))
    kept = _and(kept, problem.other_nulls, energy=NULL_ENERGY, most=room)
    if named:
        room = int(NAMED_ROOM * (width - kept.shape[1]))
        kept = _and(kept, problem.named, energy=NAMED_ENERGY, most=room)
    return kept


def _and(kept: Tensor, rows: Tensor, *, energy: float, most: int) -> Tensor:
    """The directions of `kept (d, q)`, and the strongest of `rows (n, d)`.

    Args:
        kept: Orthonormal.
        rows: What to add, to a share `energy` of their part outside `kept`.
        energy: See `rows`.
        most: How many directions they may take, if it is more than one.
    """
    if not len(rows):
        return kept
    more = orthonormal(rows - (rows @ kept) @ kept.T, energy=energy)[:, : max(1, most)]
    basis, _ = torch.linalg.qr(torch.cat([kept, more], dim=1))
    return basis
