"""Is this what it says it is? Every claim of an erasure or an erased checkpoint, checked again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.algebra.certificate import energy_left
from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.report import layers_text, printable
from erase_sd.fit.task import in_contexts
from erase_sd.models.architectures import TOKENS
from erase_sd.models.checkpoint import Checkpoint, DiffusersFolder
from erase_sd.models.embedded import EMBEDDED
from erase_sd.models.files import PROVENANCE
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.placing import settle
from erase_sd.operations.common import Run, open_model
from erase_sd.text.background import positions
from erase_sd.text.encoder import TextEncoder


@dataclass(frozen=True)
class Check:
    """One claim, and whether it holds.

    Attributes:
        name: What is claimed.
        passed: Whether it holds.
        why: What is wrong, if it does not.
    """

    name: str
    passed: bool
    why: str = ""


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Attributes:
        concepts: Names of the erased concepts.
        checks: Every claim.
        layers: Layers of the text encoder that every concept holds for.
    """

    concepts: tuple[str, ...]
    checks: tuple[Check, ...]
    layers: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return all(c.passed for c in self.checks)

    def json(self) -> dict[str, Any]:
        """For programs."""
        why = {c.name: c.why for c in self.checks if c.why}
        return {
            "concepts": list(self.concepts),
            "layers": list(self.layers),
            **{c.name: c.passed for c in self.checks},
            **({"why": why} if why else {}),
            "passed": self.passed,
        }

    def lines(self) -> list[str]:
        """For people."""
        rows = [("concepts", ", ".join(printable(c) for c in self.concepts))]
        rows += [("holds for", layers_text(self.layers))] if self.layers else []
        rows += [
            (c.name, "ok" if c.passed else f"FAILED{': ' if c.why else ''}{c.why}")
            for c in self.checks
        ]
        return [f"{name:<22}{value}" for name, value in rows]


def verify(
    path: str | Path, base: str | Path | Checkpoint = EMBEDDED, *, run: Run | None = None
) -> Verified:
    """Check an erasure file against its base, or an erased checkpoint against both.

    Args:
        path: Erasure file or erased checkpoint.
        base: The model it was made from.
        run: How the models are read.

    Raises:
        ValueError: If the path holds no erasure, or a file is damaged.

    Example:
        >>> import tempfile
        >>> from erase_sd import erase
        >>> cat = erase("emoji-sd", ["cat"], run=Run(dry_run=True)).erasure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     verify(cat.save(Path(folder) / "cat.safetensors"), "emoji-sd").passed
        True
    """
    run, path = run or Run(), Path(path)
    settle(path)
    own = Checkpoint.erasure_file(path)
    erased = None
    if path.is_dir() or own.is_file():
        erased = open_checkpoint(path, variant=run.source.variant)
        if not own.is_file():
            raise ValueError(f"{path} carries no {own.name}: it was not erased by this tool")
    erasure = Erasure.from_pretrained(own if erased else path)
    model = open_model(base, run.source)
    weights = model.weights(kinds=erasure.kinds)
    checks = [_base(erasure, weights)]
    encoder = TextEncoder.from_checkpoint(model, device=run.device)
    same = encoder.fingerprint == erasure.text_encoder
    checks.append(
        Check("text encoder", same, "" if same else "it is another than the erasure was made for")
    )
    if same:
        checks.append(_fades(erasure, encoder))
    if erased:
        checks += _checkpoint(erased, erasure, weights, checks[0].passed)
    told = [concept.layers for concept in erasure.concepts]
    shared = tuple(layer for layer in told[0] if all(layer in layers for layers in told))
    return Verified(erasure.names, tuple(checks), shared)


def _base(erasure: Erasure, weights: Mapping[str, Tensor]) -> Check:
    try:
        erasure.check_base(weights)
    except WrongBase as error:
        return Check("base weights", False, str(error))
    return Check("base weights", True)


def _fades(erasure: Erasure, encoder: TextEncoder) -> Check:
    """Recompute each concept's forget residual and compare it with the stored certificate."""
    for concept in erasure.concepts:
        stored = concept.certificate.get("forget_residual")
        if stored is None:
            continue
        prompts = in_contexts(concept.forget, concept.contexts)
        moments = encoder.moments(prompts, concept.tokens, length=positions(encoder))[TOKENS]
        # A file that does not say was made of the architecture's own layer, the first.
        told = concept.layers or encoder.layers[:1]
        unknown = set(told) - set(encoder.layers)
        if unknown:
            return Check("forget prompts fade", False, f"no layer {unknown.pop()} is read here")
        width = moments[0].held.shape[-1]
        if concept.edit.width != width:
            why = f"it is for features of width {concept.edit.width}, here they have {width}"
            return Check("forget prompts fade", False, why)
        now = max(energy_left(moments[encoder.layers.index(layer)], concept.edit) for layer in told)
        if abs(now - stored) > 1e-3:
            return Check(
                "forget prompts fade",
                False,
                f"{printable(concept.name)}: {now:.1%} is left, not {stored:.1%}",
            )
    return Check("forget prompts fade", True)


def _checkpoint(
    erased: Checkpoint, erasure: Erasure, weights: Mapping[str, Tensor], base_holds: bool
) -> list[Check]:
    wrong = _differs(erased, erasure, weights) if base_holds else "the base is another"
    strays = erased.strays()
    open_sides = _open_sides(erased, erasure)
    checks = [
        Check("erased weights", not wrong, wrong),
        *([Check("left sides closed", not open_sides, open_sides)] if erasure.left else []),
        Check(
            "no other weights",
            not strays,
            f"{len(strays)} may still hold it, e.g. {strays[0]}" if strays else "",
        ),
    ]
    if isinstance(erased, DiffusersFolder):
        told = _told(erased.path, erasure)
        checks.append(
            Check(PROVENANCE, told, "" if told else "it does not say what the erasure file says")
        )
    return checks


def _differs(checkpoint: Checkpoint, erasure: Erasure, weights: Mapping[str, Tensor]) -> str:
    """What of the checkpoint's weights is not the base's, edited; "" if all is.

    To a few units in the last place, since another machine may sum in another order.
    """
    erased = checkpoint.weights(kinds=erasure.kinds)
    for name, expected in erasure.edit_weights(weights).items():
        if name not in erased or erased[name].shape != expected.shape:
            return f"{name} is missing or misshapen"
        room = 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        if not bool(((erased[name].double() - expected.double()).abs() <= room).all()):
            return f"{name} is not what the erasure makes of the base"
    return ""


def _open_sides(checkpoint: Checkpoint, erasure: Erasure) -> str:
    """Which value matrix can write along what its left side closes, for whatever input; "" if none.

    Needs no base: `bᵀ W'` is zero, to rounding, or it is not.
    """
    if erasure.scale != 1 or any(c.strength < 1 for c in erasure.concepts):
        return "closed only in part: its scale or strength is not 1"
    weights = checkpoint.weights(kinds=erasure.kinds)
    for name, side in erasure.left.items():
        weight = weights[name].double()
        eps = torch.finfo(weights[name].dtype).eps
        if float((side.B.T @ weight).norm()) > 4 * eps * float(weight.norm()):
            return f"{name} can write along it"
    return ""


def _told(folder: Path, erasure: Erasure) -> bool:
    """Whether `erasure.json` says what the erasure file says."""
    try:
        about = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(about == json.loads(json.dumps(erasure.describe())))
