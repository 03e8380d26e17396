"""What a run compares: the original, erasure files, methods at their defaults, checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import diffusers
from torch import Tensor

from erase_sd.algebra.methods import DEFAULT, METHODS
from erase_sd.algebra.options import described
from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.eval.protocol import Protocol
from erase_sd.eval.run_folder import ORIGINAL, Variant
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.checkpoint import Checkpoint, DiffusersFolder
from erase_sd.models.files import file_hash
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.tensor_files import tensor_hash
from erase_sd.pipelines.loading import load_pipeline
from erase_sd.prompts import read_prompts
from erase_sd.text.encoder import TextEncoder


@dataclass(frozen=True)
class Asked:
    """What to compare with the original.

    Attributes:
        erasures: Erasure files, by the name that their variant gets.
        methods: Methods that erase each of the protocol's concepts, at their defaults.
        robust: Whether the default method also does so in robust mode.
        checkpoints: Other diffusers folders, or folders that hold one for each group.
    """

    erasures: Mapping[str, Path] = field(default_factory=dict)
    methods: Sequence[str] = ()
    robust: bool = False
    checkpoints: Sequence[Path] = ()


def variants_of(asked: Asked, protocol: Protocol, base: Checkpoint, model: str) -> list[Variant]:
    """The original, and everything that was asked for beside it.

    Args:
        asked: What.
        protocol: Its groups and forget prompts make the erasures of methods.
        base: The original.
        model: Its name, for the record.

    Raises:
        ValueError: If an erasure is another base's, the protocol names nothing to forget, or two
            variants would have one name.
    """
    weights = base.weights()
    identity = {"model": model, "weights": weights_hash(weights)}
    variants = [Variant(ORIGINAL, "", identity)]
    for name, path in asked.erasures.items():
        erasure = Erasure.load(path)
        erasure.check_base(weights)
        about = identity | {
            "erasure": path.name,
            "sha256": file_hash(path),
            "concepts": list(erasure.names),
        }
        variants.append(Variant(name, "", about, _always(erasure)))
    variants += _by_method(asked, protocol, base, weights, identity)
    for path in asked.checkpoints:
        variants.append(_checkpoint(path, protocol))
    names = [v.name for v in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"two variants of one name in {', '.join(names)}; rename a file")
    return variants


def _checkpoint(path: Path, protocol: Protocol) -> Variant:
    """A checkpoint, or a folder that holds one for each group of the protocol."""
    each = {g: path / g for g in protocol.groups}
    if not (path / "model_index.json").is_file() and any(p.is_dir() for p in each.values()):
        about = {"model": str(path), "groups": {g: _identity(p) for g, p in each.items()}}
        return Variant(path.name, {g: str(p) for g, p in each.items()}, about)
    own = Checkpoint.erasure_file(path)
    baked = Erasure.load(own) if own.is_file() else None
    return Variant(path.name, str(path), {"model": str(path)} | _identity(path), baked=baked)


def _identity(path: Path) -> dict[str, Any]:
    """What tells a checkpoint from others: a trained one may differ in any tensor."""
    opened = open_checkpoint(path)
    if isinstance(opened, DiffusersFolder):
        return {"denoiser": [file_hash(f) for f in opened.denoiser_files]}
    return {"weights": weights_hash(opened.weights())}


def _always(erasure: Erasure) -> Callable[[str], Erasure]:
    return lambda group: erasure


def _by_method(
    asked: Asked,
    protocol: Protocol,
    base: Checkpoint,
    weights: Mapping[str, Tensor],
    identity: Mapping[str, Any],
) -> list[Variant]:
    """A variant for each method, whose erasures are solved when a group is drawn."""
    wanted = [(m, False) for m in asked.methods] + ([(DEFAULT, True)] if asked.robust else [])
    missing = [g for g in protocol.groups if g not in protocol.forget]
    if wanted and missing:
        told = "give --erasure instead of --method"
        raise ValueError(f"the protocol names nothing to forget for {missing[0]!r}; {told}")
    encoder = cache(lambda: TextEncoder.from_checkpoint(base))

    def maker(method: str, robust: bool) -> Callable[[str], Erasure]:
        sites = base.sites(kinds=METHODS[method].kinds)

        @cache
        def made(group: str) -> Erasure:
            forget = read_prompts(list(protocol.forget[group]), what="forget")
            own = {site.name: weights[site.name] for site in sites}
            settings = Settings(method, robust=robust)
            each = [[p] for p in forget] if protocol.apart else [forget]
            return combine(
                [
                    fit(encoder(), f, name=f[0] if protocol.apart else group, weights=own,
                        settings=settings)
                    for f in each
                ]
            )  # fmt: skip

        return made

    return [
        Variant(
            method + ("-robust" if robust else ""),
            "",
            {
                **identity,
                "method": method,
                "options": described(METHODS[method].make_options({}))
                | ({"robust": True} if robust else {}),
            },
            maker(method, robust),
        )
        for method, robust in wanted
    ]


def pipelines_of(
    protocol: Protocol, base: Checkpoint, *, variant: str = "", device: str = "cpu"
) -> Callable[[str], Any]:
    """Pipelines by a variant's `model`, with the protocol's scheduler; the base and one more stay.

    Args:
        protocol: Names the scheduler, or leaves the model's own.
        base: The pipeline of "".
        variant: Variant of the weights' files.
        device: Where they are put.

    Raises:
        ValueError: If diffusers has no such scheduler.
    """
    wanted = protocol.generation.scheduler
    kind = getattr(diffusers, wanted, None) if wanted else None
    if wanted and not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"diffusers has no scheduler {wanted}")

    base_pipe = cache(lambda: opened(base))

    @lru_cache(maxsize=1)  # a checkpoint for each group may be many
    def other(where: str) -> Any:
        return opened(Path(where))

    def opened(model: Path | Checkpoint) -> Any:
        pipe = load_pipeline(model, variant=variant, device=device)
        if kind is not None:
            pipe.scheduler = kind.from_config(pipe.scheduler.config)
        return pipe

    return lambda where: other(where) if where else base_pipe()


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """One hash over all tensors that read text; 16 digits."""
    parts = "".join(tensor_hash(w) for _, w in sorted(weights.items()))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
