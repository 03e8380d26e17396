"""Things reached by name: registries of `name -> "module:attribute"`, imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def resolve(where: str) -> Any:
    """The object behind `"module:attribute"`.

    >>> resolve("math:pi")
    3.141592653589793
    """
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def named(registry: Mapping[str, str], name: str, what: str) -> Any:
    """The object that a registry holds under a name.

    Args:
        registry: Names and `"module:attribute"`.
        name: One of them.
        what: What it is a registry of, for the error.

    Raises:
        ValueError: On another name, with those that there are.

    >>> named({"pi": "math:pi"}, "pi", "constant")
    3.141592653589793
    """
    if name not in registry:
        raise ValueError(f"no {what} {name!r}; there are {', '.join(registry)}")
    return resolve(registry[name])
