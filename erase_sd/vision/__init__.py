"""Unlearning in classifiers, vision transformers and CLIP, on the edits of concept erasure.

>>> from erase_sd.vision import DEFAULT, METHODS, Cache, Data, Result, VisionMethod, build
>>> from erase_sd.vision import load_data, make_task, measure, unlearn
>>> data, model = load_data("digits"), build("mlp", 10, 1, seed=0)
>>> isinstance(data, Data), isinstance(METHODS[DEFAULT], VisionMethod)
(True, True)
>>> task = make_task(data, "class:3")
>>> done = unlearn(model, task, DEFAULT)
>>> isinstance(done, Result), sorted(measure(done.model, task))
(True, ['MIA', 'RA', 'TA', 'UA'])
>>> len(Cache.of(model, task.retain).moments)  # a layer each
3
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erase_sd.vision.cache import Cache
    from erase_sd.vision.data import Data, load_data
    from erase_sd.vision.methods import Result, unlearn
    from erase_sd.vision.metrics import measure
    from erase_sd.vision.models import load_model
    from erase_sd.vision.networks import build
    from erase_sd.vision.registry import DEFAULT, METHODS, VisionMethod
    from erase_sd.vision.samples import Pictures, Samples
    from erase_sd.vision.task import Task, make_task
    from erase_sd.vision.train import Recipe

__all__ = [
    "DEFAULT",
    "METHODS",
    "Cache",
    "Data",
    "Pictures",
    "Recipe",
    "Result",
    "Samples",
    "Task",
    "VisionMethod",
    "build",
    "load_data",
    "load_model",
    "make_task",
    "measure",
    "unlearn",
]

_FROM = {
    "Cache": "cache",
    "Data": "data",
    "load_data": "data",
    "DEFAULT": "registry",
    "METHODS": "registry",
    "Result": "methods",
    "VisionMethod": "registry",
    "unlearn": "methods",
    "measure": "metrics",
    "load_model": "models",
    "build": "networks",
    "Pictures": "samples",
    "Samples": "samples",
    "Task": "task",
    "make_task": "task",
    "Recipe": "train",
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"erase_sd.vision.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
