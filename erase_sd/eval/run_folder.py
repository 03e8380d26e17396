"""The folder of a run: whose it is, what is drawn, what was seen; each file whole or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from erase_sd.artifact.erasure import Erasure
from erase_sd.eval.detectors import Labels, open_images
from erase_sd.eval.protocol import Protocol
from erase_sd.eval.rows import Row
from erase_sd.models.files import atomic_path, file_hash
from erase_sd.models.leftovers import sweep
from erase_sd.prompts import read_text

ORIGINAL = "original"


@dataclass(frozen=True)
class Variant:
    """One model to evaluate.

    Attributes:
        name: As it appears in results; a folder of the run bears it.
        model: Key of the pipeline it is drawn with; "" is the base. A mapping has one a group.
        about: What it is, JSON-ready.
        erasure: For a group, the erasure to apply; None leaves the model as it is.
        baked: What a checkpoint of its own says it carries.
    """

    name: str
    model: str | Mapping[str, str]
    about: dict[str, Any]
    erasure: Callable[[str], Erasure | None] = lambda group: None
    baked: Erasure | None = None

    def model_of(self, group: str) -> str:
        """The key of the pipeline that a group is drawn with."""
        return self.model if isinstance(self.model, str) else self.model[group]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in order, so that equal content is equal bytes."""
    with atomic_path(path, force=True) as draft:
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        draft.write_text(text + "\n", encoding="utf-8")


def claim(protocol: Protocol, variants: Sequence[Variant], out: Path) -> None:
    """Claim the folder for this protocol and these variants, or go on with it.

    Raises:
        ValueError: If it holds another run.
    """
    mine = {"protocol": protocol.describe(), "variants": {v.name: v.about for v in variants}}
    path, told = out / "run.json", "choose another --out"
    sweep(out)
    if path.is_file():
        with understood(path):
            other = json.loads(read_text(path, "a run"))
            theirs, known = other["protocol"], dict(other["variants"])
            whose = f"{theirs['name']} {theirs['hash']}"[:200]
        if theirs["hash"] != mine["protocol"]["hash"]:
            raise ValueError(f"{out} holds a run of {whose}; {told}")
        for name, about in mine["variants"].items():
            if known.get(name, about) != about:
                raise ValueError(f"{out} holds another variant named {name}; {told}")
        mine["variants"] = known | mine["variants"]
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run; {told}")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, mine)


def batches(protocol: Protocol) -> list[list[Row]]:
    """The rows in fixed batches, each of one group, guidance and attack."""
    size, made = protocol.generation.batch, []
    for group in protocol.groups:
        # The scale is one for a batch in diffusers; an attack is made for one prompt.
        alike: dict[tuple[Any, ...], list[Row]] = {}
        for row in protocol.rows:
            if row.group == group:
                key = row.guidance, row.attack, row.prompt if row.attack else ""
                alike.setdefault(key, []).append(row)
        for rows in alike.values():
            made += [rows[i : i + size] for i in range(0, len(rows), size)]
    return made


def record(out: Path, variant: Variant, number: int) -> Path:
    """Where a batch's record stands; a batch is done when it is there."""
    return out / variant.name / "batches" / f"{number:06d}.json"


def store(
    out: Path, variant: Variant, number: int, drawn: Iterable[tuple[Row, Image.Image]]
) -> None:
    """Write a batch's pictures, then its record."""
    (out / variant.name / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for row, image in drawn:
        name = f"images/{row.id}.png"
        path = out / variant.name / name
        with atomic_path(path, force=True) as draft:
            image.save(draft, format="PNG")
        entries.append(asdict(row) | {"file": name, "sha256": file_hash(path)})
    write_json(record(out, variant, number), entries)


def manifest(protocol: Protocol, variant: Variant, out: Path) -> list[dict[str, Any]]:
    """Every image of a variant, in the protocol's order; also written as `manifest.jsonl`.

    Raises:
        ValueError: If images are missing or were changed since.
    """
    entries: dict[str, dict[str, Any]] = {}
    for number in range(len(batches(protocol))):
        path = record(out, variant, number)
        if not path.is_file():
            told = "the run is not complete; run it again and it goes on"
            raise ValueError(f"{path} is missing: {told}")
        entries |= {e["id"]: e for e in json.loads(path.read_text(encoding="utf-8"))}
    ordered = [entries[row.id] for row in protocol.rows]
    for entry in ordered:
        path = out / variant.name / entry["file"]
        if not path.is_file() or file_hash(path) != entry["sha256"]:
            told = f"delete {path.parent.parent / 'batches'} and run again"
            raise ValueError(f"{path} is missing or was changed; {told}")
    with atomic_path(out / variant.name / "manifest.jsonl", force=True) as draft:
        lines = [json.dumps(e, sort_keys=True) + "\n" for e in ordered]
        draft.write_text("".join(lines), encoding="utf-8")
    return ordered


def labels(
    protocol: Protocol, variant: Variant, entries: Sequence[dict[str, Any]], out: Path
) -> list[Labels]:
    """The detector's records, one for each image; kept, so that an image is looked at once."""
    about = json.dumps(protocol.about_detector, sort_keys=True)
    name = f"labels-{hashlib.sha256(about.encode()).hexdigest()[:12]}.json"
    kept = out / variant.name / name
    known: dict[str, Labels] = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    new = [e for e in entries if e["sha256"] not in known]
    if new:
        detector = protocol.detector.load()
        label = f"{detector.name} on {variant.name}"
        for start in tqdm(range(0, len(new), 64), desc=label, unit="batch"):
            chunk = new[start : start + 64]
            seen = detector(open_images([out / variant.name / e["file"] for e in chunk]))
            known |= {e["sha256"]: found for e, found in zip(chunk, seen, strict=True)}
        write_json(kept, known)
    return [known[e["sha256"]] for e in entries]


def results_of(path: Path) -> dict[str, Any]:
    """The results of a run, from its folder or its results.json.

    Raises:
        ValueError: If there are none.
    """
    file = path / "results.json" if path.is_dir() else path
    with understood(path):
        value: dict[str, Any] = json.loads(read_text(file, "results"))
        if not isinstance(value["protocol"]["hash"], str) or not isinstance(
            value["variants"], dict
        ):
            raise ValueError("expected a hash in words and variants by name")
    return value


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Where results are read that may be another program's: what is odd is one clear line.

    Raises:
        ValueError: If something is not as `eval run` writes it.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        told = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{path} holds no results of `eval run` ({told})") from error
