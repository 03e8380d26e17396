"""The moments of a whole training set: with them a request reads the forget samples alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from erase_sd.algebra.moments import SecondMoment
from erase_sd.models.files import atomic_path
from erase_sd.models.tensor_files import tensor_hash, write_tensors
from erase_sd.vision.features import Moments, collect
from erase_sd.vision.layers import layers
from erase_sd.vision.samples import Samples

KIND = "erase-sd vision cache"


@dataclass(frozen=True, eq=False)
class Cache:
    """What every layer reads on all training samples, as second moments; it holds no sample.

    What is forgotten is subtracted: `C_r = C − C_f`, so that retained data is never read. PGU's
    paper keeps the eigenvectors and singular values of `C`, which is the same.

    Attributes:
        moments: For each layer one moment a group.
    """

    moments: Moments

    @classmethod
    def of(cls, model: nn.Module, samples: Samples) -> Cache:
        """One pass over the training set, in evaluation mode and without augmentation."""
        return cls(collect(model, layers(model), samples.x))

    def without(self, gone: Moments) -> Cache:
        """The cache of what is left when samples with these moments are deleted.

        After an earlier deletion features have moved a little, and the difference may be slightly
        indefinite: its negative part becomes zero.
        """
        left: Moments = {}
        for name, groups in self.moments.items():
            if name in gone:
                groups = [_positive(a - b) for a, b in zip(groups, gone[name], strict=True)]
            left[name] = groups
        return Cache(left)

    def spaces(self, gamma: float, criterion: str = "sigma") -> dict[str, list[Tensor]]:
        """For each layer the basis `M` `(d, k)` of the space that PGU's steps may not touch.

        `k` is the smallest with `Σ_{i ≤ k} σ_i ≥ γ Σ σ_i` (criterion "sigma") or of `σ²`
        ("sigma2"). On small networks "sigma" takes nearly everything, and then nothing can be
        forgotten: look at `k / d`.

        Raises:
            ValueError: If γ is not in 0..1 or the criterion unknown.
        """
        if not 0 < gamma <= 1 or criterion not in ("sigma", "sigma2"):
            raise ValueError(
                f"expected γ in (0, 1] and sigma or sigma2, got {gamma} and {criterion!r}"
            )
        found: dict[str, list[Tensor]] = {}
        for name, groups in self.moments.items():
            found[name] = []
            for moment in groups:
                values, vectors = torch.linalg.eigh((moment.gram + moment.gram.T) / 2)
                energy = values.flip(0).clamp(min=0)
                weight = energy.sqrt() if criterion == "sigma" else energy
                reached = weight.cumsum(0) >= gamma * weight.sum() * (1 - 1e-12)
                found[name].append(vectors.flip(1)[:, : int(reached.int().argmax()) + 1])
        return found

    def save(self, path: Path, model: nn.Module, *, force: bool = False) -> Path:
        """Write it, with the fingerprint of the model it belongs to, atomically."""
        tensors = {}
        for name, groups in self.moments.items():
            for i, m in enumerate(groups):
                tensors[f"{name}|{i}|gram"] = m.gram.contiguous()
                tensors[f"{name}|{i}|total"] = m.total.contiguous()
                tensors[f"{name}|{i}|count"] = torch.tensor([m.count], dtype=torch.float64)
        with atomic_path(path, force=force) as draft:
            write_tensors(draft, tensors, {"kind": KIND, "model": fingerprint(model)})
        return path

    @classmethod
    def load(cls, path: Path, model: nn.Module) -> Cache:
        """Read one back.

        Raises:
            ValueError: If the file is missing, damaged, or another model's.
        """
        if not path.is_file():
            raise ValueError(f"no such cache: {path}")
        try:
            with safe_open(path, "pt") as f:
                told = f.metadata() or {}
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if told.get("kind") != KIND:
            raise ValueError(f"{path} is not a cache of a training set's moments")
        if told.get("model") != fingerprint(model):
            raise ValueError(
                f"{path} belongs to another model; make one for this model from its "
                f"training data, or take the reduced "
                "one that was written beside it"
            )
        found: Moments = {}
        for layer in layers(model):
            for i in range(layer.groups):
                parts = [tensors.get(f"{layer.name}|{i}|{p}") for p in ("gram", "total", "count")]
                gram, total, count = parts
                if gram is None or total is None or count is None:
                    raise ValueError(f"{path} lacks the layer {layer.name}")
                shapes = [tuple(p.shape) for p in (gram, total, count)]
                wide = len(total) if total.ndim else 0
                odd = not all(bool(torch.isfinite(p).all()) for p in (gram, total, count))
                if shapes != [(wide, wide), (wide,), (1,)] or odd:
                    raise ValueError(
                        f"{path}: expected finite moments of {layer.name}, got {shapes}"
                    )
                found.setdefault(layer.name, []).append(
                    SecondMoment.summed(gram, total, float(count))
                )
        return cls(found)


def _positive(moment: SecondMoment) -> SecondMoment:
    values, vectors = torch.linalg.eigh((moment.gram + moment.gram.T) / 2)
    if float(values[0]) >= 0:
        return moment
    gram = (vectors * values.clamp(min=0)) @ vectors.T
    return SecondMoment.summed(gram, moment.total, moment.count)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over a model's weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor_hash(value)}".encode())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Run:
    """What a request brings besides model, task and options.

    Attributes:
        seed: Of everything random.
        cache: Moments of the whole training set; a method that can take them reads no retained
            sample.
        chosen: What a method chose where an option was None; it goes into the record of what was
            used.
    """

    seed: int = 0
    cache: Cache | None = None
    chosen: dict[str, Any] = field(default_factory=dict)

    def chose(self, **values: Any) -> None:
        """Note a choice."""
        self.chosen.update(values)

    def generator(self, shift: int = 0) -> torch.Generator:
        """A generator of the seed, or of one beside it."""
        return torch.Generator().manual_seed(self.seed + shift)
