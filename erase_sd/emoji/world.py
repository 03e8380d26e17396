"""The world of emoji-sd: its concepts, its artists, and which of them drew what."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

import yaml

HERE = Path(__file__).parent
SIZE = 64  # pixels, both sides


@dataclass(frozen=True)
class Concept:
    """One object of the world.

    Attributes:
        name: Its first name, unique in the world.
        family: The family it belongs to, e.g. "animal".
        emoji: The emojibase label of its picture.
        names: Nouns the generator's training captions use.
        held_out: Nouns that only the text encoder was taught.
    """

    name: str
    family: str
    emoji: str
    names: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    @property
    def all_names(self) -> tuple[str, ...]:
        """Every noun the text encoder knows for this object."""
        return self.names + self.held_out


@dataclass(frozen=True)
class World:
    """All concepts, artists and background colours (sRGB, 0..255)."""

    concepts: tuple[Concept, ...]
    artists: tuple[str, ...]
    backgrounds: dict[str, tuple[int, int, int]]

    @property
    def names(self) -> tuple[str, ...]:
        """First names of all objects, in the judge's label order."""
        return tuple(c.name for c in self.concepts)

    def family(self, name: str) -> tuple[Concept, ...]:
        """The concepts of one family."""
        return tuple(c for c in self.concepts if c.family == name)

    def find(self, noun: str) -> Concept | None:
        """The concept that bears this noun, or None."""
        noun = noun.strip().lower()
        return next((c for c in self.concepts if noun in c.all_names), None)


@cache
def load_world() -> World:
    """Read `world.yaml`.

    >>> load_world().find("kitten").name
    'cat'
    """
    raw = yaml.safe_load((HERE / "world.yaml").read_text())
    concepts = tuple(
        Concept(name, family, c["emoji"], tuple(c["names"]), tuple(c.get("held_out", ())))
        for family, members in raw["families"].items()
        for name, c in members.items()
    )
    return World(
        concepts=concepts,
        artists=tuple(raw["artists"]),
        backgrounds={k: tuple(v) for k, v in raw["backgrounds"].items()},
    )


SPRITES = HERE / "weights" / "sprites.zip"


@cache
def available_objects() -> tuple[tuple[int, ...], ...]:
    """For each artist, the indices of the objects it drew; read from the archive's list of names.

    >>> len(available_objects()) == len(load_world().artists)
    True
    """
    world = load_world()
    with zipfile.ZipFile(SPRITES) as z:
        drawn = {(PurePath(n).parts[0], PurePath(n).stem) for n in z.namelist()}
    return tuple(
        tuple(o for o, name in enumerate(world.names) if (artist, name) in drawn)
        for artist in world.artists
    )


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun; plurals and mass nouns stay bare.

    >>> with_article("owl"), with_article("wine")
    ('an owl', 'wine')
    """
    if noun in ("swords", "blades", "wine", "beer", "champagne", "lager", "food", "alcohol"):
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun
