"""Erasure: the artifact. Edits, what they are for, and which base they belong to, in kilobytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit, joint
from erase_sd.algebra.two_sided import TwoSidedEdit
from erase_sd.artifact import file
from erase_sd.artifact.base import WrongBase, check_base, check_scale, check_text_encoder, hashes
from erase_sd.artifact.card import Publication, card
from erase_sd.artifact.concept import ErasedConcept
from erase_sd.models.architectures import TOKENS, Architecture, Kinds, Site, Stream, by_name
from erase_sd.models.files import ERASURE, PROVENANCE
from erase_sd.models.hub import local_file, push


@dataclass(frozen=True, eq=False)
class Erasure:
    """One or more erased concepts for one base model.

    Attributes:
        concepts: The concepts, sorted by name, so that order never matters.
        architecture: Registry name of the kind of model, which tells what each tensor reads.
        kinds: Which projections the right sides edit: "k", "v" or "kv".
        base: SHA-256 of each base tensor that is edited, by its diffusers name.
        text_encoder: SHA-256 of the text encoder whose features the edits are made of.
        scale: What multiplies the finished change of every weight: 0 is off, 1 as made.

    Example:
        >>> from erase_sd import Run, erase
        >>> dry = Run(dry_run=True)
        >>> cat, dog = (erase("emoji-sd", [c], run=dry).erasure for c in ("cat", "dog"))
        >>> (cat + dog).names, (cat + dog - "cat").names
        (('cat', 'dog'), ('dog',))
    """

    concepts: tuple[ErasedConcept, ...]
    architecture: str = "sd"
    kinds: Kinds = "kv"
    base: Mapping[str, str] = field(default_factory=dict)
    text_encoder: str = ""
    scale: float = 1.0

    def __post_init__(self) -> None:
        names = [c.name for c in self.concepts]
        if len(set(names)) < len(names):
            raise ValueError(f"two concepts of one name in {names}; take one out or rename it")
        if (
            len({tuple((s, e.width) for s, e in sorted(c.right.items())) for c in self.concepts})
            > 1
        ):
            raise ValueError(
                "these erasures have different widths: they belong to different text encoders"
            )
        object.__setattr__(self, "concepts", tuple(sorted(self.concepts, key=lambda c: c.name)))

    # -- the edit -----------------------------------------------------------------------------

    @cached_property
    def right(self) -> dict[Stream, LowRankEdit]:
        """The joint right side of all concepts, for each text stream."""
        if not self.concepts:
            raise ValueError("this erasure is empty: all concepts were taken out")
        # What a concept has above 1 also reaches what concepts share, and would add up: they share
        # it.
        count = len(self.concepts)
        strengths = [min(c.strength, 1 + (c.strength - 1) / count) for c in self.concepts]
        pairs = list(zip(self.concepts, strengths, strict=True))
        return {
            s: joint([c.right[s].scaled(by) for c, by in pairs])
            for s in sorted(self.concepts[0].right)
        }

    @cached_property
    def left(self) -> dict[str, LowRankEdit]:
        """The joint left side of all concepts, by tensor name."""
        sides: dict[str, list[LowRankEdit]] = {}
        for concept in self.concepts:
            for name, edit in concept.left.items():
                sides.setdefault(name, []).append(edit.scaled(min(concept.strength, 1.0)))
        return {name: joint(edits) for name, edits in sides.items()}

    @property
    def edit(self) -> LowRankEdit:
        """The joint right side of the token states, at scale 1."""
        return self.right[TOKENS]

    @property
    def model(self) -> Architecture:
        """The registry entry of the architecture."""
        return by_name(self.architecture)

    def edit_of(self, site: Site) -> TwoSidedEdit:
        """What happens to one tensor."""
        return TwoSidedEdit(self.right[site.stream], self.left.get(site.name), self.scale)

    @cached_property
    def rank(self) -> int:
        """The largest rank of a tensor's change."""
        streams = max(e.rank for e in self.right.values())
        return max([streams, *(self.edit.rank + e.rank for e in self.left.values())])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the erased concepts."""
        return tuple(c.name for c in self.concepts)

    def editable(self, names: Sequence[str] | Mapping[str, Any]) -> list[Site]:
        """Those of some tensors that this erasure edits."""
        return self.model.sites(names, kinds=self.kinds)

    def edit_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The edited tensor for each base tensor this erasure edits, in its dtype.

        The base is not checked.

        Args:
            weights: Base tensors by name; those it does not edit are ignored.

        Raises:
            WrongBase: If their shapes do not fit.
            ValueError: If a weight is not finite, before or after.
        """
        new = {}
        for site in self.editable(weights):
            weight, edit = weights[site.name], self.edit_of(site)
            if site.stream == TOKENS and weight.shape[-1] != edit.right.width:
                raise WrongBase(
                    f"{site.name} reads {weight.shape[-1]} features, this erasure is for "
                    f"{edit.right.width}"
                )
            new[site.name] = edit.apply_to_weight(weight)
        return new

    # -- its algebra --------------------------------------------------------------------------

    def scaled(self, scale: float) -> Erasure:
        """The same erasure, its change of every weight multiplied: 0 is off, 1 as made.

        Raises:
            ValueError: If the scale is not a number between −10 and 10.
        """
        check_scale(scale)
        return self if scale == 1 else replace(self, scale=self.scale * scale)

    def __add__(self, other: Erasure) -> Erasure:
        """Both erasures at once; order does not matter."""
        for name in ("architecture", "text_encoder", "kinds", "scale"):
            if getattr(self, name) != getattr(other, name):
                raise WrongBase(f"these erasures differ in {name}; they cannot be combined")
        if self.base and other.base and dict(self.base) != dict(other.base):
            raise WrongBase("these erasures were made for different base weights")
        return replace(self, concepts=self.concepts + other.concepts, base=self.base or other.base)

    def __sub__(self, other: Erasure | str) -> Erasure:
        """Take concepts out again, by erasure or by name; the others are as if made alone."""
        names = {other} if isinstance(other, str) else set(other.names)
        missing = names - set(self.names)
        if missing:
            raise ValueError(
                f"not erased here: {', '.join(sorted(missing))}; there are {', '.join(self.names)}"
            )
        return replace(self, concepts=tuple(c for c in self.concepts if c.name not in names))

    # -- base ---------------------------------------------------------------------------------

    def bound_to(self, weights: Mapping[str, Tensor]) -> Erasure:
        """Record the base tensors it is for."""
        return replace(self, base=hashes(weights))

    def check_base(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse another base.

        Raises:
            WrongBase: With what differs.
        """
        check_base(self.base, weights)

    def check_text_encoder(self, fingerprint: str) -> None:
        """Refuse another text encoder.

        Raises:
            WrongBase: If the fingerprints differ.
        """
        check_text_encoder(self.text_encoder, fingerprint)

    # -- file ---------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, JSON-ready."""
        return {
            "architecture": self.architecture,
            "kinds": self.kinds,
            "scale": self.scale,
            "text_encoder": self.text_encoder,
            "concepts": [c.describe() for c in self.concepts],
            "base": dict(self.base),
        }

    def to_bytes(self) -> bytes:
        """The content of its file."""
        return file.dump(self.describe(), self._tensors())

    def files(self) -> dict[str, bytes]:
        """The small files that go with a checkpoint: itself, and the same in words."""
        words = json.dumps(self.describe(), indent=2, ensure_ascii=False).encode()
        return {ERASURE: self.to_bytes(), PROVENANCE: words}

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the artifact, a `.safetensors` of kilobytes, atomically.

        Raises:
            FileExistsError: If it exists and `force` is off.
        """
        return file.write(Path(path), self.to_bytes(), force=force)

    @classmethod
    def load(cls, path: str | Path) -> Erasure:
        """Read an artifact.

        Raises:
            ValueError: If the file is missing, damaged, hostile or of a newer format.
        """
        about, tensors = file.read(Path(path))
        concepts = []
        for i, entry in enumerate(about["concepts"]):
            right = {s: LowRankEdit(*file.factors(tensors, f"{i}.{s}")) for s in entry.pop("right")}
            left = {
                n: LowRankEdit(*file.factors(tensors, f"{i}.left.{n}")) for n in entry.pop("left")
            }
            concepts.append(ErasedConcept(right=right, left=left, **entry))
        return cls(**about | {"concepts": tuple(concepts)})

    # -- the Hub ----------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Erasure:
        """Read an artifact from this disk or from the Hub.

        Args:
            name: An erasure file, a folder that holds one, or a Hub id such as "ann/no-cat".
            revision: Branch, tag or commit of a Hub id.

        Raises:
            ValueError: If it cannot be had, and as `load` does.
        """
        return cls.load(local_file(name, ERASURE, revision=revision))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        about: Publication | None = None,
        also: Sequence[Path] = (),
        private: bool | None = None,
    ) -> str:
        """Publish it with its model card, for `from_pretrained`; returns the commit's address.

        Args:
            repo_id: OWNER/NAME; made if it is not there.
            about: What its card says besides; default: nothing.
            also: Other files to put beside it, such as a LoRA of it.
            private: Whether a new repository is; None leaves it to the owner's setting.
        """
        words = self.card(replace(about or Publication(repo_id), name=repo_id)).encode()
        files: dict[str, bytes | Path] = {"README.md": words, **self.files()}
        message = f"Without {', '.join(self.names)}"[:200]
        return push(repo_id, files | {p.name: p for p in also}, message=message, private=private)

    def card(self, about: Publication) -> str:
        """Its model card in Markdown."""
        return card(self.concepts, about, tensors=len(self.base))

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, concept in enumerate(self.concepts):
            sides = [(f"{i}.{s}", e) for s, e in concept.right.items()]
            sides += [(f"{i}.left.{n}", e) for n, e in concept.left.items()]
            for key, edit in sides:
                found |= file.stored(key, edit.A, edit.B)
        return found


def combine(erasures: Sequence[Erasure]) -> Erasure:
    """The sum of several erasures."""
    total, *rest = erasures
    for erasure in rest:
        total = total + erasure
    return total
