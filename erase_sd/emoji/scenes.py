"""Scenes of the embedded world and the captions that describe them.

A scene is one or two objects drawn by one artist on one background. Everything random comes from
the generator handed in, so a seed names a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erase_sd.emoji.world import available_objects, load_world, with_article


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `sizes` is "small", "big" or "" for each object."""

    objects: tuple[int, ...]  # indices into World.concepts
    artist: int
    background: str
    sizes: tuple[str, ...]
    pose_seed: int


# What the first generation drew worst, by its judge's count or by eye.
HARD = frozenset(
    ("turtle", "bicycle", "airplane", "snake", "bow", "pistol", "trumpet", "tower", "truck",
     "wine", "crown", "frog", "butterfly", "penguin", "cat", "dog", "horse", "tiger", "train",
     "violin", "pizza", "church", "horn")
)  # fmt: skip
HARD_ARTISTS = frozenset(("noto", "twemoji", "emojitwo"))


def sample_scene(
    rng: np.random.Generator,
    *,
    pairs: float = 0.3,
    available: Sequence[Sequence[int]] | None = None,
    emphasis: float = 0.0,
) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of all randomness.
        pairs: Share of two-object scenes.
        available: For each artist, the concept indices it has a picture of; default: from the
            sprites.
        emphasis: How much more often the objects and artists that are hard to draw are taken; 0:
            all alike.

    Returns:
        A scene whose objects differ from each other.

    >>> sample_scene(np.random.default_rng(0), pairs=1).sizes
    ('', '')
    """
    world = load_world()
    if available is None:
        available = available_objects()
    if emphasis:
        odds = np.array([1 + emphasis * (a in HARD_ARTISTS) / 2 for a in world.artists])
        artist = int(rng.choice(len(odds), p=odds / odds.sum()))
    else:
        artist = int(rng.integers(len(world.artists)))
    n = 2 if rng.random() < pairs else 1
    weights = np.array([1 + emphasis * (world.names[o] in HARD) for o in available[artist]])
    objects = rng.choice(
        np.asarray(available[artist]),
        size=n,
        replace=False,
        p=weights / weights.sum() if emphasis else None,
    )
    sizes = tuple(("small", "big", "")[int(rng.choice(3, p=[0.15, 0.15, 0.7]))] for _ in objects)
    return Scene(
        objects=tuple(int(o) for o in objects),
        artist=artist,
        background=list(world.backgrounds)[int(rng.integers(len(world.backgrounds)))],
        sizes=sizes if n == 1 else ("",) * n,
        pose_seed=int(rng.integers(2**31)),
    )


MEDIA = ("a photo of ", "a picture of ", "an emoji of ", "an image of ", "a drawing of ", "", "")
STYLES = ("by {}", "in the style of {}", "in {} style", "{} style")
GROUNDS = (
    "on a {} background",
    "on {}",
    "with a {} background",
    "against a {} background",
    "{} background",
)
JOINS = ("{} and {}", "{} with {}", "{} next to {}", "{} beside {}")


def caption(
    scene: Scene,
    rng: np.random.Generator,
    *,
    held_out: bool = False,
    attributes: float = 0.6,
    family: float = 0.04,
) -> str:
    """Describe a scene in one of many ways.

    Args:
        scene: What to describe.
        rng: Source of all randomness.
        held_out: Whether nouns reserved for the text encoder may be used.
        attributes: Probability that the artist, and likewise the background, is named.
        family: Probability that an object is called by its family ("an animal").

    Returns:
        A lower-case caption.
    """
    world = load_world()

    def pick(items: Sequence[str]) -> str:
        return items[int(rng.integers(len(items)))]

    nouns = []
    for index, size in zip(scene.objects, scene.sizes, strict=True):
        concept = world.concepts[index]
        noun = pick(concept.all_names if held_out else concept.names)
        if rng.random() < family:
            noun = concept.family
        phrase = f"{size} {noun}" if size and rng.random() < 0.7 else noun
        nouns.append(with_article(phrase) if rng.random() < 0.85 else phrase)
    if len(nouns) == 2 and rng.random() < 0.5:
        nouns.reverse()
    subject = nouns[0] if len(nouns) == 1 else pick(JOINS).format(*nouns)
    style = pick(STYLES).format(world.artists[scene.artist]) if rng.random() < attributes else ""
    ground = pick(GROUNDS).format(scene.background) if rng.random() < attributes else ""
    if ground and rng.random() < 0.1:
        text, ground = f"a {scene.background} background with {subject}", ""
    else:
        text = pick(MEDIA) + subject
    tail = [t for t in ((style, ground) if rng.random() < 0.5 else (ground, style)) if t]
    comma = rng.random() < 0.3
    return (", " if comma else " ").join([text, *tail])
