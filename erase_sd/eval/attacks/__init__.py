"""Attacks: can a prompt that nobody would write, or some training, bring the concept back?

Each stands in the file named for it and is registered by one line below; nothing is imported before
it is asked for. A protocol names one as "prompt", or with steps of its own as "prompt:80".

>>> from erase_sd.eval.attacks import ATTACKS, LEARNING, attacked
>>> LEARNING <= set(ATTACKS)
True
>>> with attacked("none of these", target=None):
...     pass
Traceback (most recent call last):
ValueError: no attack 'none of these'; there are paraphrase, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from erase_sd._lazy import named

if TYPE_CHECKING:
    from torch import Tensor

    from erase_sd.eval.attacks.latents import Draw
    from erase_sd.eval.attacks.target import Target

__all__ = ["ATTACKS", "LEARNING", "attacked", "parse"]

# Each is a context manager of `(target, steps)`; while it is on, what it yields is drawn with.
ATTACKS: dict[str, str] = {
    "paraphrase": "erase_sd.eval.attacks.paraphrase:paraphrase",
    "revival": "erase_sd.eval.attacks.revival:revived",
    "ring-a-bell": "erase_sd.eval.attacks.ring_a_bell:ring_a_bell",
    "tokens": "erase_sd.eval.attacks.tokens:real_tokens",
    "prompt": "erase_sd.eval.attacks.prompt:free_tokens",
    "inversion": "erase_sd.eval.attacks.prompt:inversion",
    "fine-tuning": "erase_sd.eval.attacks.fine_tuning:fine_tuned",
    "noise": "erase_sd.eval.attacks.latents:noise",
    "completion": "erase_sd.eval.attacks.latents:completion",
    "masked": "erase_sd.eval.attacks.latents:masked",
}
# Those that learn from an attacker's pictures of the concept.
LEARNING = frozenset(("tokens", "prompt", "inversion", "fine-tuning"))


def parse(attack: str) -> tuple[str, int | None]:
    """An attack's name, and its steps if it says how many.

    Raises:
        ValueError: If there is no such attack, or its steps are no whole number above zero.

    >>> parse("prompt:80"), parse("revival")
    (('prompt', 80), ('revival', None))
    """
    name, colon, steps = attack.partition(":")
    if name not in ATTACKS:
        raise ValueError(f"no attack {name!r}; there are {', '.join(ATTACKS)}")
    if colon and not (steps.isdecimal() and int(steps) > 0):
        raise ValueError(f"expected steps above zero behind {name}:, got {steps!r}")
    return name, int(steps) if colon else None


@contextmanager
def attacked(attack: str, target: Target) -> Iterator[Tensor | str | Draw]:
    """What to draw with while an attack is on: a prompt, `(1, L, d)` text states, or a function.

    Args:
        attack: Its name, and its steps if they are not its own: "prompt:80".
        target: What is attacked.

    Raises:
        ValueError: If there is no such attack, or it cannot be made here.
    """
    name, steps = parse(attack)
    with named(ATTACKS, name, "attack")(target, steps) as found:
        yield found
