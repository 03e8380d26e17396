"""Protocols: which prompts, drawn how, judged by what. Everything that moves the number is hashed."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from erase_sd.eval.detectors import DetectorSpec

HERE = Path(__file__).parent / "protocols"
ROLES = ("forget", "retain", "in-domain", "cross-domain")
_KEYS = {"name", "summary", "source", "rows", "forget", "generation", "detector", "metrics", "features"}


@dataclass(frozen=True)
class Row:
    """One image to draw.

    Attributes:
        id: Unique in the protocol; the image's file name.
        group: Which concept is to be erased when it is drawn.
        role: "forget" (shows the concept) or what should stay: "retain", or told apart as UnlearnCanvas does
            "in-domain" (other styles when a style goes) and "cross-domain" (objects).
        prompt: What to draw.
        want: Label that the detector should give in the original, or "".
        seed: Of the noise.
        guidance: Classifier-free guidance scale.
        attack: Attack that it is drawn under, see `erase_sd.eval.attack.ATTACKS`; "" for none.
    """

    id: str
    group: str
    role: str
    prompt: str
    want: str
    seed: int
    guidance: float
    attack: str = ""


@dataclass(frozen=True)
class Generation:
    """How images are drawn; what is None is the model's own.

    Attributes:
        steps: Denoising steps.
        guidance: Scale for rows that have none of their own.
        scheduler: Class name in diffusers.
        size: Pixels, both sides.
        dtype: Of the network.
        batch: Images at once; moves the last bits, hence hashed.
    """

    steps: int = 50
    guidance: float = 7.5
    scheduler: str | None = None
    size: int | None = None
    dtype: str = "float32"
    batch: int = 8


@dataclass(frozen=True)
class Protocol:
    """One evaluation.

    Attributes:
        name: File name without ending.
        summary: One line.
        source: Where it is from.
        rows: All images to draw, in order.
        forget: For each group, the forget prompts of an erasure made on the fly.
        generation: How.
        detector: What looks at them.
        metrics: What is computed: "accuracy", "attacks", "counts", "clip-score", "drift", "lpips", "frechet", "kid",
            "cmmd".
        features: Extractor of the last three: "judge", "emoji-clip", "clip:MODEL", "inception-2048" or
            "inception-64" (the convention of SalUn's tables).
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

    @cached_property
    def hash(self) -> str:
        """SHA-256 over rows, generation, detector with its version, and extractor; 16 digits.

        Not over the metrics' names: adding one moves no other number.
        """
        about = {
            "rows": [asdict(r) for r in self.rows],
            "generation": asdict(self.generation),
            "detector": self.about_detector,
            "features": self.features,
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
        rows = json.dumps([asdict(r) for r in self.rows], sort_keys=True)
        return {
            "name": self.name,
            "hash": self.hash,
            "rows": len(self.rows),
            "prompts_sha256": hashlib.sha256(rows.encode()).hexdigest(),
            "generation": asdict(self.generation),
            "detector": self.about_detector,
            "features": self.features,
        }

    def limited(self, count: int) -> Protocol:
        """The first `count` rows of every group and role: a trial, with another hash."""
        seen: dict[tuple[str, str], int] = {}
        rows = []
        for row in self.rows:
            key = row.group, row.role
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= count:
                rows.append(row)
        return replace(self, rows=tuple(rows))


def available() -> dict[str, str]:
    """Names and summaries of the protocols in the package."""
    found = {}
    for path in sorted(HERE.glob("*.yaml")):
        found[path.stem] = str(yaml.safe_load(path.read_text(encoding="utf-8"))["summary"])
    return found


def load_protocol(name: str, *, data: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Read a protocol of the package, or a YAML file by path.

    Args:
        name: Name or path.
        data: Local csv for protocols whose prompts are not in the package.
        overrides: Entries of `generation` to change; the hash changes with them.

    Raises:
        ValueError: With what is wrong or missing, and what was expected.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else HERE / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"no protocol {name!r}; there are {', '.join(available())}, or give a .yaml file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a protocol")
    unknown = sorted(set(raw) - _KEYS)
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    missing = sorted({"rows", "detector"} - set(raw))
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}")
    try:
        generation = Generation(**{**(raw.get("generation") or {}), **(overrides or {})})
    except TypeError as error:
        raise ValueError(f"{path}: generation: {error}") from error
    detector = dict(raw["detector"])
    rows = _rows(raw["rows"], generation, data, path)
    if not rows:
        raise ValueError(f"{path} has no rows")
    if len({r.id for r in rows}) < len(rows):
        raise ValueError(f"{path}: two rows of one id")
    for row in rows:  # ids become file names
        if not re.fullmatch(r"\w[\w. -]*", row.id) or row.role not in ROLES:
            raise ValueError(
                f"{path}: row {row.id!r} ({row.role}): expected a plain name and a role of {', '.join(ROLES)}"
            )
    if generation.dtype != "float32":
        raise ValueError(f"{path}: images are drawn in float32, got dtype {generation.dtype}")
    forget = {str(g): tuple(str(p) for p in prompts) for g, prompts in (raw.get("forget") or {}).items()}
    return Protocol(
        name=path.stem,
        summary=str(raw.get("summary", "")),
        source=str(raw.get("source", "")),
        rows=tuple(rows),
        forget=forget or _own_forget(raw["rows"]),
        generation=generation,
        detector=DetectorSpec(detector.pop("name"), detector),
        metrics=tuple(raw.get("metrics") or ("accuracy",)),
        features=str(raw.get("features", "inception-2048")),
    )


def _rows(spec: Mapping[str, Any], generation: Generation, data: Path | None, path: Path) -> list[Row]:
    kinds = [k for k in ("csv", "concepts", "emoji") if k in spec]
    if len(kinds) != 1:
        raise ValueError(f"{path}: rows are given by one of csv, concepts or emoji")
    return {"csv": _csv_rows, "concepts": _concept_rows, "emoji": _emoji_rows}[kinds[0]](spec, generation, data)


# -- prompts in a table -------------------------------------------------------------------------


def _csv_rows(spec: Mapping[str, Any], generation: Generation, data: Path | None) -> list[Row]:
    """Rows of a public csv: local by `data`, else from the Hub's cache or the Hub."""
    about = spec["csv"]
    columns: dict[str, list[str]] = {k: [v] if isinstance(v, str) else list(v) for k, v in about["columns"].items()}
    path = data or _from_hub(about, columns)
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            header = reader.fieldnames or []
            use = {}
            for key, names in columns.items():
                match = next((n for n in names if n in header), None)
                if match is None and key not in about.get("optional", ()):
                    raise ValueError(f"{path} has no column {' or '.join(names)} ({key}); it has {', '.join(header)}")
                if match is not None:
                    use[key] = match
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    keep = about.get("where")
    if keep:
        lines = [x for x in lines if all(str(value) in (x.get(column) or "") for column, value in keep.items())]
    lines = lines[: about.get("first")]
    if not lines:
        raise ValueError(f"{path} has no rows that this protocol uses")
    rows = []
    for i, line in enumerate(lines):
        try:
            seed = int(float(line[use["seed"]])) if "seed" in use else i
            guidance = float(line[use["guidance"]]) if "guidance" in use else generation.guidance
        except ValueError as error:
            raise ValueError(f"{path}, row {i + 1}: {error}") from error
        group = line[use["group"]] if "group" in use else str(spec.get("group", "all"))
        want = line[use["want"]] if "want" in use else str(spec.get("want", ""))
        role = str(spec.get("role", "forget"))
        rows.append(Row(f"{i:06d}", group, role, line[use["prompt"]], want, seed, guidance))
    return rows


def _from_hub(about: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Path:
    expected = "; ".join(f"{k}: {' or '.join(v)}" for k, v in columns.items())
    help_ = f"give --data with a csv (columns {expected})"
    if "hub" not in about:
        raise ValueError(f"this protocol's prompts are not public on the Hub ({about.get('where_from', '')}); {help_}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(about["hub"], about["file"], repo_type="dataset"))
    except Exception as error:
        raise ValueError(f"the data set {about['hub']} ({about['file']}) cannot be had here; {help_}") from error


# -- concepts and templates -----------------------------------------------------------------------


def _concept_rows(spec: Mapping[str, Any], generation: Generation, data: Path | None) -> list[Row]:
    """For each concept as a group: its own prompts, and those of the other concepts, which should stay."""
    concepts: list[str] = list(spec["concepts"])
    templates = list(spec.get("templates", ["a photo of {}"]))
    count, keep = int(spec["count"]), int(spec.get("keep", 0))
    articles = bool(spec.get("article", False))

    def phrase(concept: str, i: int) -> str:
        noun = (("an " if concept[0] in "aeiouAEIOU" else "a ") + concept) if articles else concept
        return templates[i % len(templates)].format(noun)

    rows = []
    for g, concept in enumerate(concepts):
        for i in range(count):
            seed = int(spec.get("seed", 0)) + i
            rows.append(
                Row(f"{g:03d}-f{i:05d}", concept, "forget", phrase(concept, i), concept, seed, generation.guidance)
            )
        others = [c for c in concepts if c != concept]
        for i in range(keep):
            other = others[i % len(others)]
            seed = int(spec.get("seed", 0)) + 100_000 + i
            rows.append(Row(f"{g:03d}-r{i:05d}", concept, "retain", phrase(other, i), other, seed, generation.guidance))
    return rows


def _own_forget(spec: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    if "concepts" in spec:
        return {str(c): (str(c),) for c in spec["concepts"]}
    return {}


# -- the embedded world -----------------------------------------------------------------------------


def _emoji_rows(spec: Mapping[str, Any], generation: Generation, data: Path | None) -> list[Row]:
    """Objects, artists or whole families of the embedded world, with bystanders near and far."""
    kinds: dict[str, Callable[..., list[Row]]] = {
        "objects": _emoji_objects, "artists": _emoji_artists, "attacks": _emoji_attacks
    }  # fmt: skip
    kind = str(spec["emoji"])
    if kind not in kinds:
        raise ValueError(f"expected emoji rows of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind](spec, generation.guidance)


def _emoji_objects(spec: Mapping[str, Any], guidance: float) -> list[Row]:
    from erase_sd.emoji.world import load_world, with_article

    world, rows = load_world(), []
    count, keep = int(spec["count"]), int(spec["keep"])
    templates = ("a photo of {}", "a picture of {}", "{} on a blue background", "an emoji of {}")
    for group, members in dict(spec["groups"]).items():
        gone = [world.find(m) for m in members]
        if any(c is None for c in gone):
            raise ValueError(f"the embedded world has no {members[gone.index(None)]!r}")
        own = [(n, c.name) for c in gone if c for n in c.all_names]
        for i in range(count):
            noun, want = own[i % len(own)]
            prompt = templates[(i // len(own)) % 4].format(with_article(noun))
            rows.append(Row(f"{group}-f{i:04d}", group, "forget", prompt, want, i, guidance))
        names = {c.name for c in gone if c}
        families = {c.family for c in gone if c}
        near = [c.name for c in world.concepts if c.family in families and c.name not in names]
        far = [c.name for c in world.concepts if c.family not in families]
        stays = (near[: keep // 4] + far[:: max(1, len(far) // max(keep, 1))])[:keep]
        for i, name in enumerate(stays * int(spec.get("repeat", 1))):
            prompt = templates[i % 4].format(with_article(name))
            rows.append(Row(f"{group}-r{i:04d}", group, "retain", prompt, name, 50_000 + i, guidance))
    return rows


def _emoji_artists(spec: Mapping[str, Any], guidance: float) -> list[Row]:
    """UnlearnCanvas' three questions: the style gone, other styles kept, objects kept (in any style)."""
    from erase_sd.emoji.world import load_world, with_article

    world, rows = load_world(), []
    count, keep = int(spec["count"]), int(spec["keep"])
    nouns = world.names[::3]
    for group in spec["groups"]:
        others = [a for a in world.artists if a != group]
        for i in range(count):
            prompt = f"{with_article(nouns[i % len(nouns)])} by {group}"
            rows.append(Row(f"{group}-f{i:04d}", group, "forget", prompt, group, i, guidance))
        for i in range(keep):
            noun, artist = nouns[(7 * i) % len(nouns)], others[i % len(others)]
            name = f"{group}-r{i:04d}"
            if i % 2:
                prompt = f"{with_article(noun)} by {artist}"
                rows.append(Row(name, group, "in-domain", prompt, artist, i, guidance))
            else:
                rows.append(Row(name, group, "cross-domain", with_article(noun), noun, i, guidance))
    return rows


def _emoji_attacks(spec: Mapping[str, Any], guidance: float) -> list[Row]:
    """Objects by their own prompt, and under each attack; paraphrases are names that the generator learnt little of."""
    from erase_sd.emoji.world import load_world, with_article
    from erase_sd.eval.attack import ATTACKS

    world, rows = load_world(), []
    for group in spec["groups"]:
        concept = world.find(group)
        if concept is None:
            raise ValueError(f"the embedded world has no {group!r}")
        others = [n for n in concept.all_names if n != concept.name] or [concept.name]
        for attack in ("", *(spec.get("attacks") or ATTACKS)):
            for i in range(int(spec["count"])):
                noun = others[i % len(others)] if attack == "paraphrase" else concept.name
                prompt = f"a photo of {with_article(noun)}"
                rows.append(
                    Row(
                        f"{group}-{attack or 'own'}-{i:03d}", group, "forget", prompt, concept.name, i, guidance, attack
                    )
                )
    return rows
