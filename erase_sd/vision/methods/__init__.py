"""`unlearn` runs one of the methods and times it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from erase_sd.vision.cache import Cache, Run
from erase_sd.vision.registry import DEFAULT, METHODS
from erase_sd.vision.task import Task

__all__ = ["Result", "options_of", "unlearn"]


@dataclass(frozen=True, eq=False)
class Result:
    """An unlearned model.

    Attributes:
        model: A new model; the one that went in is unchanged.
        seconds: All that the request cost from the stored model on (RTE): features, moments, solve,
            training.
        method: Its name.
        options: What it was run with, automatic choices included.
    """

    model: nn.Module
    seconds: float
    method: str
    options: dict[str, Any]


def unlearn(
    model: nn.Module,
    task: Task,
    method: str = DEFAULT,
    *,
    seed: int = 0,
    cache: Cache | None = None,
    **options: Any,
) -> Result:
    """Make a model forget.

    Args:
        model: Any classifier that maps inputs to logits.
        task: What to forget and to keep.
        method: Name in `METHODS`.
        seed: Of everything random.
        cache: Moments of the whole training set, for methods that read no more than these of what
            is retained.
        **options: The method's own.

    Raises:
        ValueError: On an unknown method or option, or where the method does not apply.

    >>> import torch
    >>> from erase_sd.vision import Samples, Task, measure
    >>> x, y = torch.eye(3).repeat(20, 1), torch.arange(3).repeat(20)
    >>> whole, model = Samples(x, y), torch.nn.Linear(3, 3, bias=False)
    >>> _ = model.weight.data.copy_(4 * torch.eye(3) - 1)
    >>> task = Task(whole[y == 0], whole[y > 0], whole[y > 0], whole[y == 0], (0,), 3, "class:0")
    >>> result = unlearn(model, task)
    >>> measure(result.model, task)["UA"], result.options["rank"]
    (100.0, 1)
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    spec = METHODS[method]
    settings = options_of(method, options)
    if cache is not None and spec.retained != "moments":
        having = ", ".join(n for n, m in METHODS.items() if m.retained == "moments")
        raise ValueError(f"{method} takes no cache of moments; {having} do")
    run = Run(seed, cache)
    start = time.perf_counter()
    new = spec.function(model, task, settings, run)
    seconds = time.perf_counter() - start
    return Result(new.eval(), seconds, method, asdict(settings) | run.chosen)


def options_of(method: str, options: dict[str, Any]) -> Any:
    """A method's options as its dataclass.

    Raises:
        ValueError: If it has none of such a name.

    >>> options_of("rayleigh", {"rank": 2}).rank
    2
    """
    kind = METHODS[method].options_class
    have = [f.name for f in fields(kind)]
    unknown = sorted(set(options) - set(have))
    if unknown:
        told = ", ".join(have) or "none"
        raise ValueError(f"{method} has no option {unknown[0]!r}; it has {told}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
