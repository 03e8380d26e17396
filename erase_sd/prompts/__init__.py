"""Prompt sets: what to say when a concept is meant, and what to say when it is not.

A set is a YAML file; `nudity`, `weapons`, … ship with the package, and a path names your own.
Prompts also come as plain strings or as text files, one a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
LONGEST = 20_000  # characters of a prompt
LARGEST = 16_000_000  # bytes of a file of prompts
# Lone surrogates, control characters but line breaks, and what takes tokenizers minutes.
_UNREADABLE = re.compile(r"[\ud800-\udfff\x00-\x08\x0e-\x1f\x7f]|[\u0300-\u036f\u20d0-\u20ff]{17}")

__all__ = [
    "Concept",
    "PromptSet",
    "clean",
    "load_set",
    "neutral",
    "neutral_of",
    "read_prompts",
    "read_yaml",
    "set_names",
]


@dataclass(frozen=True)
class Concept:
    """One concept: its name and the other words for it.

    Example:
        >>> Concept("pistol", ("handgun",)).nouns
        ('pistol', 'handgun')
    """

    name: str
    synonyms: tuple[str, ...] = ()

    @property
    def nouns(self) -> tuple[str, ...]:
        """Name first, then synonyms."""
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class PromptSet:
    """A named set of concepts and the sentences they are put in.

    Attributes:
        name: Its name or path.
        description: One line.
        concepts: What the set is about.
        templates: Sentences with one `{}` for the concept.
        neutral: Nouns near the subject that should stay; `--forget set:NAME` retains them.

    Example:
        >>> pistol = Concept("pistol", ("handgun",))
        >>> guns = PromptSet("guns", "", (pistol,), templates=("a photo of a {}",))
        >>> guns.prompts()
        ['a photo of a pistol', 'a photo of a handgun']
    """

    name: str
    description: str
    concepts: tuple[Concept, ...]
    templates: tuple[str, ...] = ("{}",)
    neutral: tuple[str, ...] = field(default=())

    def prompts(self, *, synonyms: bool = True) -> list[str]:
        """Every concept, with its synonyms unless told otherwise, in every template."""
        nouns = [n for c in self.concepts for n in (c.nouns if synonyms else c.nouns[:1])]
        return [t.format(n) for n in nouns for t in self.templates]


def set_names() -> list[str]:
    """Names of the sets that ship with the package.

    Example:
        >>> "nudity" in set_names()
        True
    """
    return sorted(p.stem for p in HERE.glob("*.yaml") if not p.stem.startswith("_"))


@cache
def load_set(name: str) -> PromptSet:
    """Load a set by name, or from a `.yaml` path.

    Raises:
        ValueError: If there is no such set or the file is not one; the message says what is
            expected.

    Example:
        >>> load_set("weapons").concepts[0].name
        'dagger'
    """
    path = HERE / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"no prompt set {name!r}; there are {', '.join(set_names())}, or give a .yaml path"
        )
    raw = read_yaml(path, "a prompt set")
    if (
        not isinstance(raw, dict)
        or not isinstance(raw.get("concepts"), (dict, list))
        or not raw["concepts"]
    ):
        raise ValueError(
            f"{path}: expected a mapping with `concepts`, a list of nouns or noun: [synonyms]"
        )
    listed = raw["concepts"]
    pairs = listed.items() if isinstance(listed, dict) else [(c, []) for c in listed]
    templates = _strings(raw.get("templates") or ["{}"], path, "templates")
    for template in templates:
        if template.count("{}") != 1 or template.replace("{}", "").strip("{}") != template.replace(
            "{}", ""
        ):
            raise ValueError(
                f"{path}: expected one {{}} and no other braces in the template {template!r}"
            )
    return PromptSet(
        name=name,
        description=str(raw.get("description", "")),
        concepts=tuple(
            Concept(_string(n, path), _strings(syn or [], path, f"synonyms of {n}"))
            for n, syn in pairs
        ),
        templates=templates,
        neutral=_strings(raw.get("neutral") or [], path, "neutral"),
    )


def _short(value: object) -> str:
    return repr(value)[:80]


def _string(value: object, path: Path) -> str:
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{path}: expected a noun, got {_short(value)}")
    return str(value)


def _strings(values: object, path: Path, what: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{path}: expected a list for {what[:80]}, got {_short(values)}")
    return tuple(_string(v, path) for v in values)


def neutral() -> list[str]:
    """Templates with neutral nouns: ordinary prompts that no erasure should touch.

    Example:
        >>> len(neutral()) > 100
        True
    """
    base = load_set(str(HERE / "_neutral.yaml"))
    return base.prompts()


def neutral_of(sources: Sequence[str]) -> list[str]:
    """What the prompt sets among some sources ask to keep.

    Example:
        >>> neutral_of(["cat"]), len(neutral_of(["set:nudity"])) > 0
        ([], True)
    """
    return [noun for s in sources if s.startswith("set:") for noun in load_set(s[4:]).neutral]


def clean(prompts: Iterable[str]) -> list[str]:
    """Strip prompts, drop empty lines and repetitions, keep the order.

    Raises:
        ValueError: If one is no text that a tokenizer can take in reasonable time.

    Example:
        >>> clean(["cat ", "", "cat", "dog"])
        ['cat', 'dog']
    """
    return list(dict.fromkeys(_checked(p).strip() for p in prompts if _checked(p).strip()))


def _checked(prompt: str) -> str:
    if not isinstance(prompt, str):
        raise ValueError(f"expected prompts as text, got {_short(prompt)}")
    if len(prompt) > LONGEST:
        raise ValueError(
            f"expected prompts of at most {LONGEST} characters, got one of {len(prompt)}; "
            "text encoders read the first few hundred words"
        )
    if _UNREADABLE.search(prompt):
        raise ValueError(
            f"the prompt {ascii(prompt)[:60]} is no readable text: it has lone surrogates, control "
            "characters or long runs of combining marks"
        )
    return prompt


def read_text(path: Path, what: str) -> str:
    """A text file's content, read to a limit.

    Args:
        path: A regular file: devices and pipes have no end.
        what: What it is, for messages.

    Raises:
        ValueError: If it is none, too large, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise ValueError(f"cannot read {what} from {path}: it is no regular file")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"cannot read {what} from {path}: it is larger than {LARGEST} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {what} from {path}: {error}") from error


class _Plain(yaml.SafeLoader):
    """YAML without anchors: a few of them, nested, make more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def read_yaml(path: Path, what: str) -> Any:
    """A YAML file's content.

    Args:
        path: A regular file.
        what: What it is, for messages.

    Raises:
        ValueError: If it cannot be read, is not YAML, has aliases or is nested too deep.

    Example:
        >>> read_yaml(HERE / "weapons.yaml", "a prompt set")["templates"][:1]
        ['{}']
    """
    try:
        return yaml.load(read_text(path, what), _Plain)  # noqa: S506 - a safe one
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not valid YAML ({what}): {told}") from error


def read_prompts(sources: Sequence[str], *, what: str) -> list[str]:
    """Expand what a user typed: prompts, `set:NAME`, `file:PATH` (one prompt a line).

    A bare word is always a prompt, never a file: `cat` erases cats whatever lies in the folder.

    Args:
        sources: What was typed.
        what: "forget" or "retain", for messages.

    Raises:
        ValueError: If nothing is left, or a file or set cannot be read.

    Example:
        >>> read_prompts(["cat", "kitten"], what="forget")
        ['cat', 'kitten']
    """
    prompts: list[str] = []
    for source in sources:
        if source.startswith("set:"):
            prompts += load_set(source[4:]).prompts()
        elif source.startswith("file:"):
            prompts += read_text(Path(source[5:]), f"{what} prompts").splitlines()
        else:
            prompts.append(source)
    prompts = clean(prompts)
    if sources and not prompts:
        raise ValueError(f"the {what} prompts are empty; write at least one word")
    return prompts
