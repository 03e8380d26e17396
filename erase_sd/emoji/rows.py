"""Rows of protocols about the embedded world: objects, artists, and objects under attack.

Each row is a mapping with the fields of `erase_sd.eval.rows.Row`; this package knows no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from erase_sd.emoji.axes import KINDS, Fields, row
from erase_sd.emoji.world import Concept, load_world, with_article

_TEMPLATES = ("a photo of {}", "a picture of {}", "{} on a blue background", "an emoji of {}")


def rows(spec: Mapping[str, Any], guidance: float, data: Path | None = None) -> list[Fields]:
    """The rows that a protocol asks for by `rows: {emoji: KIND, ...}`.

    Args:
        spec: The protocol's entry.
        guidance: Scale of every row.
        data: No table is read here.

    Raises:
        ValueError: On an unknown kind or object.

    >>> one = {"emoji": "objects", "count": 1, "keep": 0, "groups": {"cat": ["cat"]}}
    >>> rows(one, 3.0)[0]["prompt"]
    'a photo of a cat'
    """
    kinds: dict[str, Callable[[Mapping[str, Any]], Iterator[Fields]]] = {
        "objects": _objects, "artists": _artists, "attacks": _attacks, **KINDS
    }  # fmt: skip
    kind = str(spec["emoji"])
    if kind not in kinds:
        raise ValueError(f"expected emoji rows of {', '.join(kinds)}, got {kind!r}")
    return [fields | {"guidance": guidance} for fields in kinds[kind](spec)]


def _object(name: str) -> Concept:
    found = load_world().find(name)
    if found is None:
        raise ValueError(f"the embedded world has no {name!r}")
    return found


def _objects(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """Each group's objects under all their names, with bystanders near and far."""
    world = load_world()
    count, keep = int(spec["count"]), int(spec["keep"])
    for group, members in dict(spec["groups"]).items():
        gone = [_object(m) for m in members]
        own = [(n, c.name) for c in gone for n in c.all_names]
        for i in range(count):
            noun, want = own[i % len(own)]
            prompt = _TEMPLATES[(i // len(own)) % 4].format(with_article(noun))
            yield row(f"{group}-f{i:04d}", group, "forget", prompt, want, i)
        names, families = {c.name for c in gone}, {c.family for c in gone}
        near = [c.name for c in world.concepts if c.family in families and c.name not in names]
        far = [c.name for c in world.concepts if c.family not in families]
        stays = (near[: keep // 4] + far[:: max(1, len(far) // max(keep, 1))])[:keep]
        for i, name in enumerate(stays * int(spec.get("repeat", 1))):
            prompt = _TEMPLATES[i % 4].format(with_article(name))
            yield row(f"{group}-r{i:04d}", group, "retain", prompt, name, 50_000 + i)


def _artists(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """UnlearnCanvas' three questions: the style gone, other styles kept, objects kept."""
    world = load_world()
    count, keep = int(spec["count"]), int(spec["keep"])
    nouns = world.names[::3]
    for group in spec["groups"]:
        others = [a for a in world.artists if a != group]
        for i in range(count):
            prompt = f"{with_article(nouns[i % len(nouns)])} by {group}"
            yield row(f"{group}-f{i:04d}", group, "forget", prompt, group, i)
        for i in range(keep):
            noun, artist = nouns[(7 * i) % len(nouns)], others[i % len(others)]
            name, plain = f"{group}-r{i:04d}", with_article(noun)
            if i % 2:
                yield row(name, group, "in-domain", f"{plain} by {artist}", artist, i)
            else:
                yield row(name, group, "cross-domain", plain, noun, i)


def _attacks(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """Objects by their own prompt and under each attack.

    Paraphrases are names that the generator learnt little of.
    """
    for group in spec["groups"]:
        concept = _object(group)
        others = [n for n in concept.all_names if n != concept.name] or [concept.name]
        for attack in ("", *spec["attacks"]):
            for i in range(int(spec["count"])):
                noun = others[i % len(others)] if attack == "paraphrase" else concept.name
                prompt = f"a photo of {with_article(noun)}"
                name = f"{group}-{attack.replace(':', '.') or 'own'}-{i:03d}"
                yield row(name, group, "forget", prompt, concept.name, i) | {"attack": attack}
