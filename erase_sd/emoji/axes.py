"""Rows of protocols that ask one question each: near things, pairs, other names, many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from erase_sd.emoji.clip import embed_texts, load_clip
from erase_sd.emoji.judge import embed
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import Scene
from erase_sd.emoji.world import available_objects, load_world, with_article

Fields = dict[str, Any]
_TEMPLATES = ("a photo of {}", "a picture of {}", "{} on a blue background", "an emoji of {}")


def row(name: str, group: str, role: str, prompt: str, want: str, seed: int) -> Fields:
    """One row's fields."""
    return {
        "id": name, "group": group, "role": role, "prompt": prompt, "want": want, "seed": seed
    }  # fmt: skip


def canvas(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """Objects by artists, for objects and for artists erased: UnlearnCanvas' three questions.

    The thing itself gone; others of its kind kept; the other kind kept.
    """
    world = load_world()
    for group in spec["groups"]:
        style = group in world.artists
        own = [(o, a) for o, a in _drawn() if group in (o, a)]
        rest = [pair for pair in _drawn() if group not in pair]
        for i in range(int(spec["count"])):
            noun, artist = own[(5 * i) % len(own)]
            prompt = f"{with_article(noun)} by {artist}"
            yield row(f"{group}-f{i:04d}", group, "forget", prompt, group, i)
        for i in range(int(spec["keep"])):
            noun, artist = rest[(37 * i) % len(rest)]
            prompt = f"{with_article(noun)} by {artist}"
            own_kind, other_kind = (artist, noun) if style else (noun, artist)
            name, seed = f"{group}-r{i:04d}", 50_000 + i
            if i % 2:
                yield row(name, group, "in-domain", prompt, own_kind, seed)
            else:
                yield row(name, group, "cross-domain", prompt, other_kind, seed)


def pinpoint(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """Each object and what is nearest to it by name, by kind and by look; and far things."""
    world = load_world()
    near, each = int(spec["near"]), int(spec["each"])
    for group in spec["groups"]:
        home = world.family(next(c.family for c in world.concepts if c.name == group))
        others = [c.name for c in home if c.name != group]
        kinds: dict[str, Sequence[str]] = {
            "name": nearest(group, by_name())[:near],
            "kind": sorted(others, key=nearest(group, by_name()).index)[:near],
            "look": nearest(group, by_look())[:near],
            "far": nearest(group, by_name())[-near:],
        }
        for i in range(int(spec["count"])):
            prompt = _TEMPLATES[i % 4].format(with_article(group))
            yield row(f"{group}-own-{i:03d}", group, "forget", prompt, group, i) | {"part": "own"}
        for part, nouns in kinds.items():
            for i, noun in enumerate(n for n in nouns for _ in range(each)):
                prompt = _TEMPLATES[i % 4].format(with_article(noun))
                name = f"{group}-{part}-{i:03d}"
                yield row(name, group, "retain", prompt, noun, 50_000 + i) | {"part": part}


def pairs(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """The object beside another, with artist and background named: is the rest still there?"""
    world = load_world()
    grounds = list(world.backgrounds)
    for group in spec["groups"]:
        artists = [a for o, a in _drawn() if o == group]
        nouns = [o for o in nearest(group, by_name()) if all((o, a) in _drawn() for a in artists)]
        for i in range(int(spec["count"])):
            other = nouns[(7 * i + 3) % len(nouns)]
            artist, ground = artists[i // 4 % len(artists)], grounds[i // 4 % len(grounds)]
            both = [with_article(group), with_article(other)]
            both = both if i % 8 < 4 else both[::-1]
            prompt = f"{both[0]} and {both[1]} by {artist} on a {ground} background"
            # One question a picture: more pictures say more than more questions.
            wants = {"target": group, "other object": other, "artist": artist, "background": ground}
            part = list(wants)[i % 4]
            role = "forget" if part == "target" else "retain"
            name = f"{group}-{i:03d}"
            yield row(name, group, role, prompt, wants[part], i) | {"part": part}


def names(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """The object by its name and by ever less: other names, a slip, a description, its family."""
    world = load_world()
    for group in spec["groups"]:
        concept = next(c for c in world.concepts if c.name == group)
        rungs = {
            "name": (group,),
            "other name": concept.names[1:],
            "unseen name": concept.held_out,
            "misspelling": misspelled(group),
            "description": tuple(spec["descriptions"][group]),
            "family": (concept.family,),
        }
        for part, nouns in rungs.items():
            for i in range(int(spec["count"]) if nouns else 0):
                noun = nouns[i % len(nouns)]
                told = noun if part == "description" else with_article(noun)
                prompt = _TEMPLATES[(i // len(nouns)) % 4].format(told)
                name = f"{group}-{part.replace(' ', '-')}-{i:03d}"
                yield row(name, group, "forget", prompt, group, i) | {"part": part}


def sequence(spec: Mapping[str, Any]) -> Iterator[Fields]:
    """The first 1, 2, 5, … of a list erased: all of them asked for, and what is not on it."""
    world, order = load_world(), list(spec["order"])
    count, keep = int(spec["count"]), int(spec["keep"])
    rest = [n for n in world.names if n not in order]
    for group in spec["groups"]:
        gone = order[: int(group)]
        for i in range(count):
            noun = gone[i % len(gone)]
            prompt = _TEMPLATES[(i // len(gone)) % 4].format(with_article(noun))
            yield row(f"{group}-f{i:04d}", group, "forget", prompt, noun, i)
        for i in range(keep):
            noun = rest[(5 * i) % len(rest)]
            prompt = _TEMPLATES[i % 4].format(with_article(noun))
            yield row(f"{group}-r{i:04d}", group, "retain", prompt, noun, 50_000 + i)


KINDS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Fields]]] = {
    "canvas": canvas, "pinpoint": pinpoint, "pairs": pairs, "names": names, "sequence": sequence
}  # fmt: skip


def misspelled(noun: str) -> tuple[str, ...]:
    """A noun with two letters swapped, one doubled, one lost.

    >>> misspelled("cat")
    ('cta', 'catt', 'at')
    """
    return (noun[:-2] + noun[-1] + noun[-2], noun + noun[-1], noun[1:])


@cache
def _drawn() -> tuple[tuple[str, str], ...]:
    """All pairs of an object and an artist who drew it."""
    world = load_world()
    return tuple(
        (world.names[o], artist)
        for o in range(len(world.names))
        for artist, objects in zip(world.artists, available_objects(), strict=True)
        if o in objects
    )


def nearest(name: str, rows: np.ndarray) -> list[str]:
    """All other objects, the nearest first.

    Args:
        name: An object.
        rows: `(objects, d)` of unit length, in the world's order.
    """
    world = load_world().names
    own = world.index(name)
    order = np.argsort(-(rows @ rows[own]), kind="stable")
    return [world[i] for i in order if i != own]


@cache
def by_name() -> np.ndarray:
    """What the text encoder makes of each object's name, `(objects, d)` of unit length."""
    clip, tokenizer = load_clip()
    texts = [f"a photo of {with_article(n)}" for n in load_world().names]
    return np.asarray(embed_texts(clip, tokenizer, texts).numpy())


@cache
def by_look() -> np.ndarray:
    """What the judge makes of each object's pictures, `(objects, d)` of unit length."""
    world = load_world()
    rows = []
    for index in range(len(world.names)):
        artists = [a for a, objects in enumerate(available_objects()) if index in objects]
        scenes = [Scene((index,), a, "white", ("",), 7) for a in artists]
        rows.append(embed([Image.fromarray(render(s)) for s in scenes]).mean(0))
    centred = np.stack(rows) - np.mean(rows, axis=0)  # what all pictures share says nothing
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)
