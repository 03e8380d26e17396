"""What to look at before and after an erasure: what goes, its look-alikes, other things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erase_sd.emoji.world import Concept, load_world

# Not the sentences an edit is usually built from.
TEMPLATES = ("a picture of a {}", "a {} on a blue background", "an emoji of a {} by noto", "{}")
_SHOWN = 4  # a long list of forget prompts shows its first few


@dataclass(frozen=True)
class Subject:
    """One thing to look at.

    Attributes:
        label: For people.
        prompts: What to draw, in turn.
        target: The object that the judge should find; None if the world does not have it.
        forget: Whether it should go.
    """

    label: str
    prompts: tuple[str, ...]
    target: str | None
    forget: bool


def subjects_for(forget: Sequence[str], *, bystanders: int = 8) -> list[Subject]:
    """Forget prompts, then look-alikes of the same family, then objects of all other families.

    Args:
        forget: What is erased.
        bystanders: How many objects that should stay.

    >>> [s.label for s in subjects_for(["cat"], bystanders=2)]
    ['cat', 'dog', 'pizza']
    """
    world = load_world()
    hit = [(p, concept_in(p)) for p in forget]
    gone = {c.name for _, c in hit if c}
    subjects = [Subject(p, _prompts(p), c.name if c else None, True) for p, c in hit[:_SHOWN]]
    families = {c.family for _, c in hit if c}
    near = [c for c in world.concepts if c.family in families and c.name not in gone]
    others = dict.fromkeys(c.family for c in world.concepts if c.family not in families)
    far = [world.family(f)[0] for f in others]
    stays = [*near[: bystanders // 2], *far][:bystanders]
    return subjects + [Subject(c.name, _prompts(c.name), c.name, False) for c in stays]


def concept_in(prompt: str) -> Concept | None:
    """The world's object that a prompt names, longest noun first.

    >>> concept_in("a photo of an ice cream").family
    'food'
    """
    words = f" {prompt.lower()} "
    pairs = [(n, c) for c in load_world().concepts for n in c.all_names]
    return next((c for n, c in sorted(pairs, key=lambda p: -len(p[0])) if f" {n} " in words), None)


def _prompts(noun: str) -> tuple[str, ...]:
    if len(noun.split()) > 3:  # already a sentence
        return (noun,)
    return tuple(t.format(noun) for t in TEMPLATES)
