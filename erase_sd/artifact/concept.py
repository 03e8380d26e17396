"""One erased concept: what went, how, and what is certified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.models.architectures import TOKENS, Stream


@dataclass(frozen=True, eq=False)
class ErasedConcept:
    """One erased concept: its own edits and how they were made.

    Attributes:
        name: Short name, unique within an erasure.
        right: Its edit of each text stream, "tokens" and, where the model reads it, "pooled".
        left: Its edit of what a tensor writes, by the tensor's diffusers name; empty for one-sided
            methods.
        forget: The forget prompts.
        retain: The user's retain prompts.
        method: Registry name of the method.
        tokens: Token rule of the forget features.
        contexts: Sentences that short forget prompts were put in.
        layers: Layers of the text encoder whose states it was made of, −1 the last; hosts may feed
            any of them ("CLIP skip"). Empty where the file does not say.
        strength: How far the solved edit goes; 1 is the method's own.
        options: Every option of the method as used.
        certificate: Image-free measurements at strength 1 (see `erase_sd.algebra.certificate`).
    """

    name: str
    right: Mapping[Stream, LowRankEdit]
    forget: tuple[str, ...]
    left: Mapping[str, LowRankEdit] = field(default_factory=dict)
    retain: tuple[str, ...] = ()
    method: str = ""
    tokens: str = ""
    contexts: tuple[str, ...] = ("{}",)
    layers: tuple[int, ...] = ()
    strength: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)

    @property
    def edit(self) -> LowRankEdit:
        """The edit of the token states."""
        return self.right[TOKENS]

    def describe(self) -> dict[str, Any]:
        """All but the edits' tensors, JSON-ready."""
        about = asdict(replace(self, right={}, left={}))
        return about | {"right": sorted(self.right), "left": sorted(self.left)}
