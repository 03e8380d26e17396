"""Protocols: which prompts, drawn how, judged by what. All that moves the number is hashed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from erase_sd.eval.detectors import DetectorSpec
from erase_sd.eval.features import known_as, with_weights
from erase_sd.eval.rows import Row, hashed, own_forget, read_rows
from erase_sd.prompts import read_yaml

HERE = Path(__file__).parent / "protocols"
METRICS = (
    "accuracy", "attacks", "parts", "instead", "counts", "clip-score", "drift", "lpips", "frechet",
    "kid", "cmmd",
)  # fmt: skip
_ENTRIES: dict[str, type] = {
    "name": str, "summary": str, "source": str, "rows": dict, "forget": dict, "apart": bool,
    "generation": dict, "detector": dict, "metrics": list, "features": str,
}  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """How images are drawn; what is None is the model's own.

    Attributes:
        steps: Denoising steps.
        guidance: Scale for rows that have none of their own.
        scheduler: Class name in diffusers.
        size: Pixels, both sides.
        dtype: Of the network; float32 is what there is.
        batch: Images at once; moves the last bits, hence hashed.

    Raises:
        ValueError: On another dtype, or counts below 1.
    """

    steps: int = 50
    guidance: float = 7.5
    scheduler: str | None = None
    size: int | None = None
    dtype: str = "float32"
    batch: int = 8

    def __post_init__(self) -> None:
        if self.dtype != "float32":
            raise ValueError(f"images are drawn in float32, got dtype {self.dtype!r}")
        for name in ("steps", "batch", "size"):
            value = getattr(self, name)
            if not (type(value) is int and value >= 1 or (name, value) == ("size", None)):
                raise ValueError(f"expected {name} of at least 1, got {value!r:.60}")
        if type(self.guidance) not in (int, float) or not math.isfinite(self.guidance):
            raise ValueError(f"expected a finite guidance, got {self.guidance!r:.60}")
        if not isinstance(self.scheduler, str | None):
            raise ValueError(f"expected a scheduler's class name, got {self.scheduler!r:.60}")


@dataclass(frozen=True)
class Protocol:
    """One evaluation.

    Attributes:
        name: File name without ending.
        summary: One line.
        source: Where it is from.
        rows: All images to draw, in order.
        forget: For each group, the forget prompts of an erasure made on the fly.
        apart: Whether each forget prompt of a group is erased by itself and the erasures joined.
        generation: How.
        detector: What looks at them.
        metrics: What is computed, of `METRICS`.
        features: Extractor of the last three, see `erase_sd.eval.features.EXTRACTORS`: "judge",
            "emoji-clip", "clip:MODEL", "inception-2048" or "inception-64" (the convention of
            SalUn's tables).
    """

    name: str
    summary: str
    source: str
    rows: tuple[Row, ...]
    forget: Mapping[str, tuple[str, ...]]
    generation: Generation
    detector: DetectorSpec
    metrics: tuple[str, ...]
    features: str = "inception-2048"
    apart: bool = False

    @cached_property
    def hash(self) -> str:
        """SHA-256 over rows, generation, detector with its version, and extractor; 16 digits.

        Not over the metrics' names: adding one moves no other number.
        """
        about = {
            "rows": [hashed(r) for r in self.rows],
            "generation": asdict(self.generation),
            "detector": self.about_detector,
            "features": known_as(self.features),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def about_detector(self) -> dict[str, Any]:
        """Versions, thresholds and labels of the detector."""
        return self.detector.load().about

    @property
    def groups(self) -> list[str]:
        """Groups in order."""
        return list(dict.fromkeys(r.group for r in self.rows))

    def describe(self) -> dict[str, Any]:
        """JSON-ready, rows as their hash."""
        rows = json.dumps([hashed(r) for r in self.rows], sort_keys=True)
        return {
            "name": self.name,
            "hash": self.hash,
            "rows": len(self.rows),
            "prompts_sha256": hashlib.sha256(rows.encode()).hexdigest(),
            "generation": asdict(self.generation),
            "detector": self.about_detector,
            "features": known_as(self.features),
        }

    def limited(self, count: int) -> Protocol:
        """The first `count` rows of every group, role, part and attack: a trial of another hash."""
        seen: dict[tuple[str, ...], int] = {}
        rows = []
        for row in self.rows:
            key = row.group, row.role, row.part, row.attack
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= count:
                rows.append(row)
        return replace(self, rows=tuple(rows))


def available() -> dict[str, str]:
    """Names and summaries of the protocols in the package.

    >>> "emoji-objects" in available()
    True
    """
    found = {}
    for path in sorted(HERE.glob("*.yaml")):
        found[path.stem] = str(yaml.safe_load(path.read_text(encoding="utf-8"))["summary"])
    return found


def load_protocol(
    name: str,
    *,
    data: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    inception: str | None = None,
) -> Protocol:
    """Read a protocol of the package, or a YAML file by path.

    Args:
        name: Name or path.
        data: Local csv for protocols whose prompts are not in the package.
        overrides: Entries of `generation` to change; the hash changes with them.
        inception: Where Inception's weights are, for protocols that take distances in it.

    Raises:
        ValueError: With what is wrong or missing, and what was expected.

    >>> load_protocol("emoji-objects").groups
    ['cat', 'pizza', 'car', 'mushroom', 'umbrella']
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else HERE / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"no protocol {name!r}; there are {', '.join(available())}, or give a .yaml file"
        )
    raw = _read(path)
    try:
        generation = Generation(**{**(raw.get("generation") or {}), **(overrides or {})})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: generation: {error}") from error
    detector = dict(raw["detector"])
    try:
        rows = read_rows(raw["rows"], generation.guidance, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    metrics = tuple(raw.get("metrics") or ("accuracy",))
    unknown = [m for m in metrics if m not in METRICS]
    if unknown:
        raise ValueError(
            f"{path}: expected metrics of {', '.join(METRICS)}, got {unknown[0]!r:.60}"
        )
    given = raw.get("forget") or {}
    if not all(isinstance(p, list) for p in given.values()):
        raise ValueError(f"{path}: expected forget as lists of prompts by group, got {given!r:.60}")
    forget = {str(g): tuple(str(p) for p in prompts) for g, prompts in given.items()}
    return Protocol(
        name=path.stem,
        summary=str(raw.get("summary", "")),
        source=str(raw.get("source", "")),
        rows=tuple(rows),
        forget=forget or own_forget(raw["rows"]),
        generation=generation,
        detector=DetectorSpec(detector.pop("name"), detector),
        metrics=metrics,
        features=with_weights(str(raw.get("features", "inception-2048")), inception),
        apart=bool(raw.get("apart", False)),
    )


def _read(path: Path) -> dict[str, Any]:
    """A protocol's file, its keys checked."""
    raw = read_yaml(path, "a protocol")
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a protocol: expected a mapping")
    for key, value in raw.items():
        if key not in _ENTRIES:
            known = ", ".join(sorted(_ENTRIES))
            raise ValueError(f"{path}: unknown key {key!r:.60}; known: {known}")
        if not isinstance(value, _ENTRIES[key]):
            expected = _ENTRIES[key].__name__
            raise ValueError(f"{path}: expected {key} as {expected}, got {value!r:.60}")
    missing = sorted({"rows", "detector"} - set(raw))
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}")
    if not isinstance(raw["detector"].get("name"), str):
        raise ValueError(f"{path}: expected a detector with a name, got {raw['detector']!r:.60}")
    return raw
