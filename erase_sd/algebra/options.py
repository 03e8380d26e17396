"""Options of methods: one frozen dataclass a method, made from what a user typed.

Checked in one place.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, TypeVar

Kind = TypeVar("Kind")


def within(name: str, value: float | None, low: float, high: float = float("inf")) -> None:
    """Refuse a number out of its range; None (choose automatically) is in every range.

    Raises:
        ValueError: With what was expected and what was got.
    """
    if value is not None and not low <= value <= high:
        bounds = f"of at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ValueError(f"expected {name} {bounds}, got {value}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not in a closed vocabulary.

    Raises:
        ValueError: With the vocabulary.
    """
    if value not in allowed:
        raise ValueError(f"expected {name} of {', '.join(map(repr, allowed))}; got {value!r}")


def make(kind: type[Kind], given: Mapping[str, Any], *, owner: str) -> Kind:
    """An options dataclass from names and values, which may be text.

    Args:
        kind: The dataclass.
        given: Values by name; text is read as the field's type, "none" as None where it may be.
        owner: Whose options they are, for messages.

    Raises:
        ValueError: If a name is unknown, or a value is of another type or out of its range.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(given) - set(hints))
    if unknown:
        raise ValueError(
            f"{owner} has no option {unknown[0]!r}; it has {', '.join(hints) or 'none'}"
        )
    return kind(**{name: _read(name, value, hints[name]) for name, value in given.items()})


def described(options: Any) -> dict[str, Any]:
    """Names and values, JSON-ready."""
    return asdict(options)


def names(kind: type[Any]) -> tuple[str, ...]:
    """The names of an options dataclass."""
    return tuple(f.name for f in fields(kind))


def _read(name: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        choices = typing.get_args(hint)
        if type(None) in choices and (value is None or str(value).lower() == "none"):
            return None
        hint = next(c for c in choices if c is not type(None))
    if typing.get_origin(hint) is Literal:
        one_of(name, str(value), typing.get_args(hint))
        return str(value)
    try:
        if hint is bool:
            return _truth(value)
        number = hint(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"option {name}: expected {_article(hint)}, got {value!r}") from error
    if (
        hint is float
        and number != number
        or hint is int
        and isinstance(value, float)
        and value != number
    ):
        raise ValueError(f"option {name}: expected {_article(hint)}, got {value!r}")
    return number


def _truth(value: Any) -> bool:
    text = str(value).lower()
    if text not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(value)
    return text in ("1", "true", "yes", "on")


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "yes or no", str: "a word"}.get(
        kind, kind.__name__
    )
