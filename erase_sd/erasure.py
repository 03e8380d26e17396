"""Erasure: the artifact. An edit, what it is for, and which base it belongs to, in kilobytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd._version import __version__
from erase_sd.checkpoints import atomic_path, tensor_hash
from erase_sd.edit import LowRankEdit, joint

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Part:
    """One erased concept: its own edit and how it was made.

    Attributes:
        name: Short name, unique within an erasure.
        edit: Its edit alone.
        forget: The forget prompts.
        retain: The user's retain prompts.
        method: Registry name of the method.
        tokens: Token rule of the forget features.
        contexts: Sentences that short forget prompts were put in.
        strength: 1 is the method's own edit.
        options: Every option of the method, defaults included.
        certificate: Image-free measurements (see `erase_sd.certify`).
    """

    name: str
    edit: LowRankEdit
    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    method: str = ""
    tokens: str = ""
    contexts: tuple[str, ...] = ("{}",)
    strength: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """All but the edit, JSON-ready."""
        return {k: v for k, v in asdict(replace(self, edit=LowRankEdit.identity(1))).items() if k != "edit"}


class WrongBase(ValueError):
    """The erasure was made for another model."""


@dataclass(frozen=True, eq=False)
class Erasure:
    """One or more erased concepts for one base model.

    Attributes:
        parts: The concepts, sorted by name, so that order never matters.
        kinds: Which projections are edited: "k", "v" or "kv".
        base: SHA-256 of each base tensor that is edited, by its diffusers name.
        text_encoder: SHA-256 of the text encoder whose features the edit is made of.
    """

    parts: tuple[Part, ...]
    kinds: str = "kv"
    base: Mapping[str, str] = field(default_factory=dict)
    text_encoder: str = ""

    def __post_init__(self) -> None:
        names = [p.name for p in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"two concepts of one name in {names}; take one out or rename it")
        if len({p.edit.width for p in self.parts}) > 1:
            raise ValueError("these erasures have different widths: they belong to different text encoders")
        object.__setattr__(self, "parts", tuple(sorted(self.parts, key=lambda p: p.name)))

    @property
    def edit(self) -> LowRankEdit:
        """The joint edit of all parts."""
        if not self.parts:
            raise ValueError("this erasure is empty: all concepts were taken out")
        return joint([p.edit.scaled(p.strength) for p in self.parts])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the erased concepts."""
        return tuple(p.name for p in self.parts)

    def scaled(self, strength: float) -> Erasure:
        """The same erasure at another strength; 0 is off, 1 as made. Certificates hold for 1 only and go."""
        if strength == 1:
            return self
        parts = (replace(p, strength=p.strength * strength, certificate={}) for p in self.parts)
        return replace(self, parts=tuple(parts))

    def __add__(self, other: Erasure) -> Erasure:
        """Both erasures at once; order does not matter."""
        for name in ("text_encoder", "kinds"):
            if getattr(self, name) != getattr(other, name):
                raise WrongBase(f"these erasures differ in {name}; they cannot be combined")
        if self.base and other.base and dict(self.base) != dict(other.base):
            raise WrongBase("these erasures were made for different base weights")
        return replace(self, parts=self.parts + other.parts, base=self.base or other.base)

    def __sub__(self, other: Erasure | str) -> Erasure:
        """Take concepts out again, by erasure or by name; the others are as if made alone."""
        names = {other} if isinstance(other, str) else set(other.names)
        missing = names - set(self.names)
        if missing:
            raise ValueError(f"not erased here: {', '.join(sorted(missing))}; there are {', '.join(self.names)}")
        return replace(self, parts=tuple(p for p in self.parts if p.name not in names))

    # -- base ---------------------------------------------------------------------------------

    def bound_to(self, weights: Mapping[str, Tensor]) -> Erasure:
        """Record the base tensors it is for."""
        return replace(self, base={name: tensor_hash(w) for name, w in sorted(weights.items())})

    def check_base(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse another base.

        Raises:
            WrongBase: With what differs.
        """
        if not self.base:
            raise WrongBase("this erasure names no base weights; --allow-other-base applies it all the same")
        missing = sorted(set(self.base) - set(weights))
        if missing:
            raise WrongBase(f"this base lacks {len(missing)} of {len(self.base)} tensors, e.g. {missing[0]}")
        differ = [n for n, h in self.base.items() if tensor_hash(weights[n]) != h]
        if differ:
            raise WrongBase(
                f"this erasure was made for another base: {len(differ)} of {len(self.base)} tensors differ, "
                f"e.g. {differ[0]}; --allow-other-base applies it all the same"
            )

    def check_text_encoder(self, fingerprint: str) -> None:
        """Refuse another text encoder: the edit would act on features it was not made of.

        Raises:
            WrongBase: If the fingerprints differ.
        """
        if self.text_encoder and self.text_encoder != fingerprint:
            raise WrongBase(
                "this erasure was made for another text encoder and would not erase here; "
                "--allow-other-base applies it all the same"
            )

    def sites(self, names: Iterable[str]) -> list[str]:
        """Those of some tensor names that this erasure edits."""
        return sorted(n for n in names if n.split(".to_")[-1][:1] in self.kinds)

    def weights(self, weights: Mapping[str, Tensor], *, allow_other_base: bool = False) -> dict[str, Tensor]:
        """`W T` for each base tensor this erasure edits, in its dtype.

        Args:
            weights: Base tensors by name; those it does not edit are ignored.
            allow_other_base: Do not compare hashes.
        """
        if not allow_other_base:
            self.check_base(weights)
        edit = self.edit
        return {n: edit.weight(weights[n]) for n in self.sites(weights)}

    # -- file ---------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, JSON-ready."""
        return {
            "format": FORMAT,
            "tool": f"erase-sd {__version__}",
            "kinds": self.kinds,
            "text_encoder": self.text_encoder,
            "concepts": [p.describe() for p in self.parts],
            "base": dict(self.base),
        }

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the artifact, a `.safetensors` of a few kilobytes, atomically."""
        from safetensors.torch import save_file

        path = Path(path)
        tensors = {}
        for i, part in enumerate(self.parts):
            # Unlink's A is its B: each needs memory of its own to be saved.
            tensors[f"{i}.A"], tensors[f"{i}.B"] = part.edit.A.clone(), part.edit.B.clone()
            tensors = {k: t.contiguous() for k, t in tensors.items()}
        about = {"erase_sd": json.dumps(self.describe(), ensure_ascii=False)}
        with atomic_path(path, force=force) as draft:
            save_file(tensors, draft, metadata=about)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Erasure:
        """Read an artifact.

        Raises:
            ValueError: If the file is missing, damaged, hostile or of a newer format.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise ValueError(f"no such erasure file: {path}")
        try:
            with safe_open(path, "pt") as f:
                about = json.loads((f.metadata() or {})["erase_sd"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        except (KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not an erasure file of erase-sd") from error
        if not isinstance(about, dict) or not isinstance(about.get("format"), int):
            raise ValueError(f"{path} is not an erasure file of erase-sd")
        if about["format"] > FORMAT:
            raise ValueError(f"{path} has format {about['format']}, this version reads up to {FORMAT}: upgrade")
        try:
            parts = [
                Part(
                    name=c["name"],
                    edit=LowRankEdit(tensors[f"{i}.A"], tensors[f"{i}.B"]),
                    forget=tuple(c["forget"]),
                    retain=tuple(c["retain"]),
                    method=c["method"],
                    tokens=c["tokens"],
                    contexts=tuple(c["contexts"]),
                    strength=float(c["strength"]),
                    options=dict(c["options"].items()),
                    certificate=dict(c["certificate"].items()),
                )
                for i, c in enumerate(about["concepts"])
            ]
            base = {str(name): str(value) for name, value in about["base"].items()}
            if about["kinds"] not in ("k", "v", "kv") or not all(isinstance(p.name, str) for p in parts):
                raise TypeError("kinds")
            return cls(tuple(parts), about["kinds"], base, str(about["text_encoder"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a complete erasure file: {error} is missing or malformed") from error


def combine(erasures: Sequence[Erasure]) -> Erasure:
    """The sum of several erasures."""
    total, *rest = erasures
    for erasure in rest:
        total = total + erasure
    return total


def weight_gram(weights: Mapping[str, Tensor]) -> Tensor:
    """`Σ Wᵀ W` over weights of one width, `(d, d)` float64: all that RECE and certificates need."""
    return torch.stack([(w.double().T @ w.double()) for w in weights.values()]).sum(0)
