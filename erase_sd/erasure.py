"""Erasure: the artifact. An edit, what it is for, and which base it belongs to, in kilobytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd._version import __version__
from erase_sd.edit import LowRankEdit, joint
from erase_sd.files import atomic_path, tensor_hash
from erase_sd.sites import TOKENS, Architecture, by_name

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Part:
    """One erased concept: its own edit and how it was made.

    Attributes:
        name: Short name, unique within an erasure.
        edits: Its edit of each text stream, "tokens" and, where the model reads it, "pooled".
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
    edits: Mapping[str, LowRankEdit]
    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    method: str = ""
    tokens: str = ""
    contexts: tuple[str, ...] = ("{}",)
    strength: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)

    @property
    def edit(self) -> LowRankEdit:
        """The edit of the token states."""
        return self.edits[TOKENS]

    def describe(self) -> dict[str, Any]:
        """All but the edits' tensors, JSON-ready."""
        about = {k: v for k, v in asdict(replace(self, edits={})).items() if k != "edits"}
        return about | {"streams": sorted(self.edits)}


class WrongBase(ValueError):
    """The erasure was made for another model."""


@dataclass(frozen=True, eq=False)
class Erasure:
    """One or more erased concepts for one base model.

    Attributes:
        parts: The concepts, sorted by name, so that order never matters.
        architecture: Registry name of the kind of model, which tells each tensor's text stream.
        kinds: Which projections are edited: "k", "v" or "kv".
        base: SHA-256 of each base tensor that is edited, by its diffusers name.
        text_encoder: SHA-256 of the text encoder whose features the edit is made of.
    """

    parts: tuple[Part, ...]
    architecture: str = "sd"
    kinds: str = "kv"
    base: Mapping[str, str] = field(default_factory=dict)
    text_encoder: str = ""

    def __post_init__(self) -> None:
        names = [p.name for p in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"two concepts of one name in {names}; take one out or rename it")
        if len({tuple((s, e.width) for s, e in sorted(p.edits.items())) for p in self.parts}) > 1:
            raise ValueError("these erasures have different widths: they belong to different text encoders")
        object.__setattr__(self, "parts", tuple(sorted(self.parts, key=lambda p: p.name)))

    @property
    def edits(self) -> dict[str, LowRankEdit]:
        """The joint edit of all parts, for each text stream."""
        if not self.parts:
            raise ValueError("this erasure is empty: all concepts were taken out")
        # What a part has above 1 also reaches what concepts share, and the parts' would add up: they share it.
        count = len(self.parts)
        strengths = [min(p.strength, 1 + (p.strength - 1) / count) for p in self.parts]
        return {
            s: joint([p.edits[s].scaled(by) for p, by in zip(self.parts, strengths, strict=True)])
            for s in sorted(self.parts[0].edits)
        }

    @property
    def edit(self) -> LowRankEdit:
        """The joint edit of the token states."""
        return self.edits[TOKENS]

    @property
    def rank(self) -> int:
        """The largest rank of its edits."""
        return max(e.rank for e in self.edits.values())

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
        for name in ("architecture", "text_encoder", "kinds"):
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
        return by_name(self.architecture).sites(names, kinds=self.kinds)

    def weights(self, weights: Mapping[str, Tensor], *, allow_other_base: bool = False) -> dict[str, Tensor]:
        """`W T` for each base tensor this erasure edits, in its dtype.

        Args:
            weights: Base tensors by name; those it does not edit are ignored.
            allow_other_base: Do not compare hashes.
        """
        if not allow_other_base:
            self.check_base(weights)
        edits, architecture = self.edits, by_name(self.architecture)
        new = {}
        for name in self.sites(weights):
            stream = architecture.stream(name) or TOKENS
            new[name] = edits[stream].weight(weights[name], partial=stream != TOKENS)
        return new

    def rounding(self, weights: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> float:
        """What the cast to the weights' dtype loses of the edit: the worst tensor's `‖W' − W T‖ / ‖W T − W‖`.

        Args:
            weights: Base tensors by name.
            changed: What `weights` made of them.
        """
        edits, architecture, worst = self.edits, by_name(self.architecture), 0.0
        for name, new in changed.items():  # one at a time: in float64 they are four times the file
            stream, base = architecture.stream(name) or TOKENS, weights[name].double()
            exact = edits[stream].weight(base, partial=stream != TOKENS)
            edit = float((exact - base).norm())
            if edit > 0:
                worst = max(worst, float((new.double() - exact).norm()) / edit)
        return worst

    # -- file ---------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, JSON-ready."""
        return {
            "format": FORMAT,
            "tool": f"erase-sd {__version__}",
            "architecture": self.architecture,
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
            for stream, edit in part.edits.items():
                # Unlink's A is its B: each needs memory of its own to be saved.
                tensors[f"{i}.{stream}.A"] = edit.A.clone().contiguous()
                tensors[f"{i}.{stream}.B"] = edit.B.clone().contiguous()
        text = json.dumps(self.describe(), ensure_ascii=False)
        about = {"erase_sd": text, "sha256": _digest(text, tensors)}
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
                metadata = f.metadata() or {}
                about = json.loads(metadata["erase_sd"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        except (KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not an erasure file of erase-sd") from error
        if not isinstance(about, dict) or not isinstance(about.get("format"), int):
            raise ValueError(f"{path} is not an erasure file of erase-sd")
        if about["format"] > FORMAT:
            raise ValueError(f"{path} has format {about['format']}, this version reads up to {FORMAT}: upgrade")
        if metadata.get("sha256") != _digest(metadata["erase_sd"], tensors):
            raise ValueError(f"{path} is damaged or was altered: its checksum does not match")
        try:
            parts = [
                Part(
                    name=c["name"],
                    edits={s: LowRankEdit(tensors[f"{i}.{s}.A"], tensors[f"{i}.{s}.B"]) for s in c["streams"]},
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
            if any(e.rank > e.width for p in parts for e in p.edits.values()):
                raise TypeError("a rank within the width")
            architecture = by_name(about["architecture"])
            if any(set(p.edits) - set(architecture.patterns) or TOKENS not in p.edits for p in parts):
                raise TypeError("streams")
            return cls(tuple(parts), architecture.name, about["kinds"], base, str(about["text_encoder"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a complete erasure file: {error} is missing or malformed") from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a file's description and tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + data)
    return digest.hexdigest()


def combine(erasures: Sequence[Erasure]) -> Erasure:
    """The sum of several erasures."""
    total, *rest = erasures
    for erasure in rest:
        total = total + erasure
    return total


def weight_streams(
    architecture: Architecture, weights: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, list[Tensor]]:
    """The weights that read each stream; without any weight, every stream with none.

    Raises:
        WrongBase: If a weight is too narrow for the text encoder's features.
    """
    found: dict[str, list[Tensor]] = {} if weights else {stream: [] for stream in widths}
    for name, weight in weights.items():
        stream = architecture.stream(name) or TOKENS
        if weight.ndim != 2 or weight.shape[1] < widths[stream]:
            raise WrongBase(f"{name} is {tuple(weight.shape)}, but the text encoder gives {widths[stream]} features")
        found.setdefault(stream, []).append(weight)
    return found


def weight_gram(weights: Iterable[Tensor], width: int) -> Tensor:
    """`Σ Wᵀ W`, `(width, width)` float64: all that RECE and certificates need of the weights."""
    gram = torch.zeros(width, width, dtype=torch.float64)
    for weight in weights:
        w = weight[:, :width].double()  # the other columns read no text
        gram += (w.T @ w).cpu()
    return gram
