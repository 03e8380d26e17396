"""What the study erases, what it tells the edit, and how absence and harm are tested."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from erase_sd.emoji.world import load_world, with_article

Kind = Literal["object", "family", "artist", "ten"]
TEMPLATES = (
    "a picture of {}",
    "{} on a blue background",
    "an emoji of {} by noto",
    "{} with a white background",
)
OBJECTS = (
    "cat",
    "dog",
    "tiger",
    "horse",
    "snake",
    "pizza",
    "car",
    "rocket",
    "cake",
    "church",
    "umbrella",
    "mushroom",
)
FAMILIES = ("weapon", "alcohol")
ARTISTS = ("noto", "fluent")
TUNE_OBJECTS, TUNE_FAMILIES, TUNE_ARTISTS = (
    ("fox", "banana", "violin"),
    ("instrument",),
    ("twemoji",),
)

ATTACKED = ("cat", "pizza", "car")  # objects that a prompt attack tries to bring back
ARTIST_FORMS = ("in {} style", "{} style")


@dataclass(frozen=True)
class Target:
    """One thing to erase: what the edit is told, and how its absence is tested.

    Attributes:
        kind: What it is; "ten" are objects erased one by one and joined.
        name: Its name.
        forget: Told to forget.
        probes: The concept itself, in sentences the edit was not built from.
        synonyms: Other names for it, unknown to the edit.
        retain: Told to keep.
        kept_in: Objects of the retain list.
        kept_out: Objects that nobody listed.
        neighbours: Of the same family, not listed; for an artist, the others.
    """

    kind: Kind
    name: str
    forget: tuple[str, ...]
    probes: tuple[str, ...]
    synonyms: tuple[str, ...]
    retain: tuple[str, ...]
    kept_in: tuple[str, ...]
    kept_out: tuple[str, ...]
    neighbours: tuple[str, ...]


def target(kind: Kind, name: str) -> Target:
    """Build the test of one object, family or artist; bystanders follow from its name.

    >>> target("object", "cat").synonyms
    ('a kitten', 'a kitty')
    """
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:4], "big"))
    return _artist(name, rng) if kind == "artist" else _objects(kind, name, rng)


def _artist(name: str, rng: np.random.Generator) -> Target:
    world = load_world()
    nouns = [str(n) for n in rng.choice(world.names, 20, replace=False)]
    forms = zip(nouns[4:8], ARTIST_FORMS * 2, strict=True)
    return Target(
        kind="artist",
        name=name,
        forget=(name, f"by {name}", f"in the style of {name}"),
        probes=tuple(f"{with_article(n)} by {name}" for n in nouns[:4]),
        synonyms=tuple(f"{with_article(n)} {form}".format(name) for n, form in forms),
        retain=tuple(nouns[8:18]),
        kept_in=tuple(nouns[8:14]),
        kept_out=tuple(nouns[:4] + nouns[18:]),
        neighbours=tuple(a for a in world.artists if a != name),
    )


def _objects(kind: Kind, name: str, rng: np.random.Generator) -> Target:
    world = load_world()
    names = {"object": {name}, "ten": set(OBJECTS[:10])}.get(kind)
    gone = [c for c in world.concepts if (c.name in names if names else c.family == name)]
    families = {c.family for c in gone}
    rest = [c for c in world.concepts if c not in gone]
    order = [rest[i] for i in rng.permutation(len(rest))]
    alike = [c.name for c in order if c.family in families]
    near = (alike or [c.name for c in order if c.family == "object"])[:4]
    pool = [c.name for c in order if c.name not in near]
    probed = gone * (4 if len(gone) == 1 else 1)
    phrases = [TEMPLATES[i % 4].format(with_article(c.name)) for i, c in enumerate(probed)]
    return Target(
        kind=kind,
        name=name,
        forget=tuple(c.name for c in gone),
        probes=tuple(phrases),
        synonyms=tuple(with_article(n) for c in gone for n in (*c.names[1:], *c.held_out)),
        retain=tuple(pool[:20]),
        kept_in=tuple(pool[:6]),
        kept_out=tuple(pool[20:] if kind == "ten" else pool[20:26]),
        neighbours=tuple(near),
    )


Pairs = list[tuple[str, str]]


def prompts_of(t: Target) -> dict[str, Pairs]:
    """Prompts by role, each with what the judge should say."""
    if t.kind == "artist":
        by_others = [
            (f"{with_article(t.kept_in[i])} by {a}", a) for i, a in enumerate(t.neighbours)
        ]
        return {
            "forget": [(p, t.name) for p in t.probes],
            "synonym": [(p, t.name) for p in t.synonyms],
            "in": [(with_article(n), n) for n in t.kept_in],
            "out": [(with_article(n), n) for n in t.kept_out],
            "neighbour": by_others,
            # How often the artist is seen where none is named: what perfect forgetting comes to.
            "plain": [(with_article(n), t.name) for n in (*t.kept_in, *t.kept_out)],
        }
    first = {n: c.name for c in load_world().concepts for n in c.all_names}
    gone = [first[n] for n in t.forget]

    def photos(names: tuple[str, ...]) -> Pairs:
        return [(f"a photo of {with_article(n)}", n) for n in names]

    return {
        "forget": [(p, gone[i % len(gone)]) for i, p in enumerate(t.probes)],
        "synonym": [(p, first[p.removeprefix("a ").removeprefix("an ")]) for p in t.synonyms],
        "in": photos(t.kept_in),
        "out": photos(t.kept_out),
        "neighbour": photos(t.neighbours),
    }
