"""What a visitor typed and chose, checked: the page sends JSON, and anybody can send any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase_sd.algebra.methods import METHODS

_TEXT = 20_000  # characters of a text box


@dataclass(frozen=True)
class Concept:
    """What should go, and how.

    Attributes:
        model: Name of the model.
        forget: Prompts to forget, as typed.
        retain: Prompts to keep, as typed.
        method: Name of the method.
        robust: Whether to erase also what would revive the concept.
        toward: What should appear instead, as typed; "" leaves it to the method.

    >>> Concept.of("emoji-sd", "cat", "", "rayleigh", False).forget
    'cat'
    """

    model: str
    forget: str
    retain: str
    method: str
    robust: bool
    toward: str = ""

    @classmethod
    def of(
        cls, model: Any, forget: Any, retain: Any, method: Any, robust: Any, toward: Any = None
    ) -> Concept:
        """From what the page sent.

        Raises:
            ValueError: If it is something else.
        """
        if not isinstance(method, str) or method not in METHODS:
            raise ValueError(f"expected a method among {', '.join(METHODS)}, got {_short(method)}")
        if not isinstance(robust, bool):
            raise ValueError(f"expected robust to be true or false, got {_short(robust)}")
        texts = text(model, "the model"), text(forget, "forget"), text(retain, "keep")
        return cls(*texts, method, robust, text(toward, "what appears instead"))


@dataclass(frozen=True)
class View:
    """How to look at what is left.

    Attributes:
        scale: What multiplies the erasures' change.
        own: The visitor's own prompt, or "".
        seed: Seed of the first picture.
    """

    scale: float
    own: str
    seed: int

    @classmethod
    def of(cls, scale: Any, own: Any, seed: Any) -> View:
        """From what the page sent; an empty seed is 0.

        Raises:
            ValueError: If it is something else.
        """
        first = 0.0 if seed is None else number(seed, "the seed", most=2**31)
        return cls(number(scale, "the scale", most=2), text(own, "your prompt"), int(first))


def text(value: Any, what: str) -> str:
    """A text box's value; an empty one may be None.

    Raises:
        ValueError: If it is no text, or a long one.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _TEXT:
        raise ValueError(f"expected a text of at most {_TEXT} characters for {what}")
    return value


def number(value: Any, what: str, *, most: float) -> float:
    """A number between 0 and `most`.

    Raises:
        ValueError: If it is none.

    >>> number(1, "the scale", most=2)
    1.0
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not 0 <= value <= most:
        raise ValueError(f"expected {what} between 0 and {most:g}, got {_short(value)}")
    return float(value)


def names(value: Any) -> tuple[str, ...]:
    """Ticked names.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(value, Sequence) or not all(isinstance(n, str) for n in value):
        raise ValueError(f"expected names, got {_short(value)}")
    return tuple(value)


def uploaded(value: Any) -> Path:
    """Where an uploaded file lies, as the server told the page.

    Raises:
        ValueError: If it is no file.
    """
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or "\0" in path or not path.endswith(".safetensors"):
        raise ValueError("expected one .safetensors file")
    return Path(path)


def _short(value: Any) -> str:
    return repr(value)[:40]
