"""Things reached by name and imported on first use (PEP 562).

So importing a package costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: Its `__name__`.
        where: For each public name the module that holds it.

    Example:
        >>> get, names, _ = lazy("here", {"sqrt": "math"})
        >>> get("sqrt")(9.0), names()
        (3.0, ['sqrt'])
    """

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(where[name]), name)

    return get, lambda: sorted(where), sorted(where)


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
