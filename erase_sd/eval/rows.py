"""Rows of a protocol, one image each: from a table, from concepts and templates, by name."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from huggingface_hub import hf_hub_download

from erase_sd._lazy import resolve
from erase_sd.eval.attacks import ATTACKS, parse

Role = Literal["forget", "retain", "in-domain", "cross-domain"]
ROLES: tuple[str, ...] = get_args(Role)

# Each makes rows, or mappings with their fields, of `(entry of the protocol, guidance, --data)`.
ROW_SOURCES: dict[str, str] = {
    "csv": "erase_sd.eval.rows:csv_rows",
    "concepts": "erase_sd.eval.rows:concept_rows",
    "prompts": "erase_sd.eval.rows:prompt_rows",
    "emoji": "erase_sd.emoji.rows:rows",
}


@dataclass(frozen=True)
class Row:
    """One image to draw.

    Attributes:
        id: Unique in the protocol; the image's file name.
        group: Which concept is to be erased when it is drawn.
        role: "forget" (shows the concept) or what should stay: "retain", or told apart as
            UnlearnCanvas does "in-domain" (other styles when a style goes) and "cross-domain"
            (objects).
        prompt: What to draw.
        want: Label that the detector should give in the original, or "".
        seed: Of the noise.
        guidance: Classifier-free guidance scale.
        attack: Attack that it is drawn under, see `erase_sd.eval.attacks`; "" for none.
        part: Which of its protocol's questions it is about; "" where there is one.

    Raises:
        ValueError: On an id that is no plain file name, an unknown role or attack.

    >>> Row("cat-0", "cat", "forget", "a cat", "cat", 0, 7.5).attack
    ''
    """

    id: str
    group: str
    role: str
    prompt: str
    want: str
    seed: int
    guidance: float
    attack: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w. -]*", self.id):
            raise ValueError(f"row {self.id!r}: expected a plain name, since it names a file")
        if self.role not in ROLES:
            raise ValueError(
                f"row {self.id!r}: expected a role of {', '.join(ROLES)}, got {self.role!r}"
            )
        if self.attack:
            parse(self.attack)


def hashed(row: Row) -> dict[str, Any]:
    """What of a row moves a protocol's hash: everything that it says.

    >>> "part" in hashed(Row("cat-0", "cat", "forget", "a cat", "cat", 0, 7.5))
    False
    """
    return {k: v for k, v in asdict(row).items() if k != "part" or v}


def read_rows(spec: Mapping[str, Any], guidance: float, data: Path | None) -> list[Row]:
    """The rows of a protocol's `rows` entry.

    Args:
        spec: The entry; one of its keys names a source.
        guidance: Scale of rows that have none of their own.
        data: A local table, where the source reads one.

    Raises:
        ValueError: On another source, or what the source says.
    """
    sources = [k for k in ROW_SOURCES if k in spec]
    if len(sources) != 1:
        raise ValueError(f"rows are given by one of {', '.join(ROW_SOURCES)}")
    told, source = {"attacks": list(ATTACKS)} | dict(spec), resolve(ROW_SOURCES[sources[0]])
    try:  # what goes wrong in here is the file's fault
        rows = [row if isinstance(row, Row) else Row(**row) for row in source(told, guidance, data)]
    except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"no rows can be made of {told!r:.200}: {error!r:.200}") from error
    if not rows:
        raise ValueError("it has no rows")
    if len({r.id for r in rows}) < len(rows):
        raise ValueError("two rows of one id")
    return rows


def own_forget(spec: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What each group forgets if the protocol does not say: a concept's own name."""
    return {str(c): (str(c),) for c in spec.get("concepts", ())}


# -- prompts in a table ---------------------------------------------------------------------------


def csv_rows(spec: Mapping[str, Any], guidance: float, data: Path | None) -> list[Row]:
    """Rows of a public csv: local by `data`, else from the Hub's cache or the Hub.

    Raises:
        ValueError: If the table, a column or a number is not there.
    """
    about = spec["csv"]
    columns = {k: [v] if isinstance(v, str) else list(v) for k, v in about["columns"].items()}
    path = data or _from_hub(about, columns)
    use, lines = _read_table(path, columns, set(about.get("optional", ())))
    keep = about.get("where") or {}
    lines = [x for x in lines if all(str(v) in (x.get(c) or "") for c, v in keep.items())]
    lines = lines[: about.get("first")]
    if not lines:
        raise ValueError(f"{path} has no rows that this protocol uses")
    rows = []
    for i, line in enumerate(lines):
        try:
            seed = int(float(line[use["seed"]])) if "seed" in use else i
            scale = float(line[use["guidance"]]) if "guidance" in use else guidance
        except ValueError as error:
            raise ValueError(f"{path}, row {i + 1}: {error}") from error
        group = line[use["group"]] if "group" in use else str(spec.get("group", "all"))
        want = line[use["want"]] if "want" in use else str(spec.get("want", ""))
        role = str(spec.get("role", "forget"))
        rows.append(Row(f"{i:06d}", group, role, line[use["prompt"]], want, seed, scale))
    return rows


def _read_table(
    path: Path, columns: Mapping[str, Sequence[str]], optional: set[str]
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The table's own name of each column that is used, and its lines."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            header = reader.fieldnames or []
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    use = {}
    for key, names in columns.items():
        match = next((n for n in names if n in header), None)
        if match is None and key not in optional:
            told = f"no column {' or '.join(names)} ({key}); it has {', '.join(header)}"
            raise ValueError(f"{path} has {told}")
        if match is not None:
            use[key] = match
    return use, lines


def _from_hub(about: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Path:
    expected = "; ".join(f"{k}: {' or '.join(v)}" for k, v in columns.items())
    help_ = f"give --data with a csv (columns {expected})"
    if "hub" not in about:
        where = about.get("where_from", "")
        raise ValueError(f"this protocol's prompts are not public on the Hub ({where}); {help_}")
    try:
        return Path(hf_hub_download(about["hub"], about["file"], repo_type="dataset"))
    except Exception as error:  # the Hub's library raises many kinds: offline, gated, gone
        told = f"the data set {about['hub']} ({about['file']}) cannot be had here"
        raise ValueError(f"{told}; {help_}") from error


# -- concepts and templates -----------------------------------------------------------------------


def concept_rows(spec: Mapping[str, Any], guidance: float, data: Path | None) -> list[Row]:
    """For each concept as a group: its own prompts, and other concepts', which should stay.

    >>> concept_rows({"concepts": ["cat", "owl"], "count": 1, "keep": 1}, 7.5, None)[1].prompt
    'a photo of owl'
    """
    concepts: list[str] = list(spec["concepts"])
    templates = list(spec.get("templates", ["a photo of {}"]))
    count, keep, first = int(spec["count"]), int(spec.get("keep", 0)), int(spec.get("seed", 0))

    def phrase(concept: str, i: int) -> str:
        article = ("an " if concept[0] in "aeiouAEIOU" else "a ") if spec.get("article") else ""
        return str(templates[i % len(templates)].format(article + concept))

    rows = []
    for g, concept in enumerate(concepts):
        for i in range(count):
            name, prompt = f"{g:03d}-f{i:05d}", phrase(concept, i)
            rows.append(Row(name, concept, "forget", prompt, concept, first + i, guidance))
        others = [c for c in concepts if c != concept]
        for i in range(keep):
            other, seed = others[i % len(others)], first + 100_000 + i
            name, prompt = f"{g:03d}-r{i:05d}", phrase(other, i)
            rows.append(Row(name, concept, "retain", prompt, other, seed, guidance))
    return rows


def prompt_rows(spec: Mapping[str, Any], guidance: float, data: Path | None) -> list[Row]:
    """Each of some written prompts at some seeds.

    >>> [r.seed for r in prompt_rows({"prompts": ["a cat"], "count": 2}, 7.5, None)]
    [0, 1]
    """
    group, role = str(spec.get("group", "all")), str(spec.get("role", "forget"))
    first, count = int(spec.get("seed", 0)), int(spec.get("count", 1))
    return [
        Row(f"p{n:03d}-{i:03d}", group, role, str(prompt), str(spec.get("want", "")), first + i,
            guidance)
        for n, prompt in enumerate(spec["prompts"], 1)
        for i in range(count)
    ]  # fmt: skip
