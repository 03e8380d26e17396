"""Unlearning in classifiers, vision transformers and CLIP, on the same moments and edits as concept erasure.

from erase_sd.vision import load_data, load_model, make_task, measure, unlearn
data = load_data("digits")
task = make_task(data, "class:3")
print(measure(unlearn(model, task, "rayleigh").model, task))
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from erase_sd.vision.data import Data, load_data
    from erase_sd.vision.metrics import measure
    from erase_sd.vision.models import build, load_model
    from erase_sd.vision.task import Samples, Task, make_task

__all__ = [
    "DEFAULT",
    "METHODS",
    "PRESETS",
    "Data",
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

DEFAULT = "rayleigh"
_FROM = {
    "Data": "data", "load_data": "data", "measure": "metrics", "build": "models", "load_model": "models",
    "Samples": "task", "Task": "task", "make_task": "task",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"erase_sd.vision.{_FROM[name]}"), name)
    raise AttributeError(name)


def __dir__() -> list[str]:
    return sorted(__all__)


@dataclass(frozen=True)
class VisionMethod:
    """One way to unlearn.

    Attributes:
        where: `module:function` under `erase_sd.vision`.
        summary: One line for people.
        source: Paper.
        kind: "closed-form", "gradient", "retraining" or "trivial".
        options: Names and defaults of its options.
    """

    where: str
    summary: str
    source: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)


_UNLINK = "Unlearn in a Blink (OpenReview KnDkteVLTn)"
METHODS: dict[str, VisionMethod] = {
    "rayleigh": VisionMethod(
        "closed_form:rayleigh", "generalized Rayleigh quotient of the classifier's features, consistent form",
        f"{_UNLINK}, Eq. 12-15, corrected", "closed-form",
        {"rank": 1, "epsilon": 0.0, "variant": "hard", "layers": "last", "recompute": False},
    ),
    "unlink": VisionMethod(
        "closed_form:unlink", "the forget features' top directions projected out of the classifier", _UNLINK,
        "closed-form", {"rank": 1, "layers": "last"},
    ),
    "unlink-below": VisionMethod(
        "closed_form:unlink_below", "their weakest directions, for single samples", _UNLINK, "closed-form",
        {"below": 0.01, "layers": "last"},
    ),
    "affine": VisionMethod(
        "closed_form:affine", "shift along the forget features' direction from the retained mean", "this project",
        "closed-form", {"rank": 1},
    ),
    "gf": VisionMethod(
        "closed_form:gf", "importance-weighted projections of every layer, the best of a grid",
        "Deep Unlearning (arXiv 2312.00761)", "closed-form",
        {
            "layers": "all", "samples": 900, "alphas_retain": (10, 30, 100, 300, 1000),
            "alphas_forget": (1, 3, 10, 30, 100),
        },
    ),
    "pgu": VisionMethod(
        "pgu:pgu", "gradient steps projected off the retained core gradient space", "arXiv 2312.04095", "gradient",
        {"gamma": 0.9, "criterion": "sigma2", "epochs": 100, "lr": 0.05, "lr_last": 0.01, "batch": 64},
    ),
    "ga": VisionMethod(
        "baselines:gradient_ascent", "gradient ascent on forget samples", "arXiv 2109.13398", "gradient",
        {"epochs": 5, "lr": 1e-4},
    ),
    "rl": VisionMethod(
        "baselines:random_label", "random labels for forget samples", "arXiv 1911.04933", "gradient",
        {"epochs": 10, "lr": 0.01},
    ),
    "salun": VisionMethod(
        "baselines:salun", "random labels on the salient half of the weights", "arXiv 2310.12508", "gradient",
        {"epochs": 10, "lr": 0.01, "share": 0.5},
    ),
    "ft": VisionMethod(
        "baselines:finetune", "fine-tuning on retained samples", "arXiv 1911.04933", "gradient",
        {"epochs": 10, "lr": 0.01},
    ),
    "l1": VisionMethod(
        "baselines:l1_sparse", "fine-tuning with a falling ℓ1 penalty", "arXiv 2304.04934", "gradient",
        {"epochs": 10, "lr": 0.01, "gamma": 5e-5},
    ),
    "iu": VisionMethod(
        "baselines:influence", "influence function by WoodFisher's recursion", "arXiv 2103.03279", "gradient",
        {"alpha": 10.0, "samples": 1000},
    ),
    "be": VisionMethod(
        "baselines:boundary_expanding", "one more class that takes the forget samples", "arXiv 2303.11570", "gradient",
        {"epochs": 10, "lr": 0.01},
    ),
    "bs": VisionMethod(
        "baselines:boundary_shrink", "forget samples take the nearest other class", "arXiv 2303.11570", "gradient",
        {"epochs": 10, "lr": 0.01, "bound": 0.1},
    ),
    "ssd": VisionMethod(
        "baselines:ssd", "dampen weights that matter more to forget samples", "arXiv 2308.07707", "gradient",
        {"alpha": 10.0, "dampening": 1.0},
    ),
    "jit": VisionMethod(
        "baselines:jit", "smooth the function around forget samples", "arXiv 2402.01401", "gradient",
        {"lr": 1e-3, "noise": 0.8, "draws": 25, "epochs": 1, "batch": 64},
    ),
    "scrub": VisionMethod(
        "baselines:scrub", "away from the original on forget samples, towards it on the rest", "arXiv 2302.09880",
        "gradient",
        {"epochs": 3, "forget_epochs": 2, "lr": 5e-4, "alpha": 1e-3, "gamma": 0.99, "temperature": 4.0},
    ),
    "eu-k": VisionMethod(
        "baselines:eu_k", "the last k layers trained anew", "arXiv 2201.06640", "retraining",
        {"k": 1, "epochs": 10, "lr": 0.01},
    ),
    "ntk": VisionMethod(
        "baselines:ntk", "difference of two linearised models", "arXiv 2003.02960", "gradient",
        {"samples": 200, "ridge": 1.0, "iterations": 50},
    ),
    "first-order": VisionMethod(
        "baselines:first_order", "one gradient step back", "arXiv 2108.11577", "gradient", {"tau": 1e-2}
    ),
    "second-order": VisionMethod(
        "baselines:second_order", "one Newton step back, by LiSSA", "arXiv 2108.11577", "gradient",
        {"tau": 1.0, "damping": 0.1, "scale": 50.0, "iterations": 30, "batch": 256},
    ),
    "retrain": VisionMethod(
        "baselines:retrain", "training anew on what is retained: the reference", "-", "retraining",
        {"epochs": 100, "lr": 0.1, "batch": 128, "augment": False},
    ),
    "mask": VisionMethod(
        "closed_form:mask", "the forgotten classes' logits hidden: the trivial baseline", "-", "trivial"
    ),
}  # fmt: skip

# Options that differ from a method's own for some data or network on it ("digits", "digits cnn"); those for digits are
# found on classes 0, 4 and 7 of one seed by `python -m erase_sd.bench.vision --tune`.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("retrain", "digits"): {"epochs": 40, "lr": 0.05, "batch": 64},
    ("ga", "digits mlp"): {"lr": 0.03, "epochs": 10},
    ("rl", "digits mlp"): {"lr": 0.03},
    ("salun", "digits mlp"): {"lr": 0.03},
    ("ft", "digits mlp"): {"lr": 0.1, "epochs": 20},
    ("l1", "digits mlp"): {"lr": 0.1, "gamma": 0.005},
    ("iu", "digits mlp"): {"alpha": 30.0},
    ("be", "digits mlp"): {"lr": 0.001, "epochs": 10},
    ("bs", "digits mlp"): {"lr": 0.003, "epochs": 5, "bound": 0.3},
    ("ssd", "digits mlp"): {"alpha": 5.0, "dampening": 1.0},
    ("jit", "digits mlp"): {"lr": 0.01, "epochs": 5},
    ("scrub", "digits mlp"): {"lr": 0.05, "epochs": 6},
    ("first-order", "digits mlp"): {"tau": 0.03},
    ("second-order", "digits mlp"): {"tau": 100.0},
    ("eu-k", "digits mlp"): {"k": 1, "epochs": 20},
    ("pgu", "digits mlp"): {"gamma": 0.8},
    ("ga", "digits cnn"): {"lr": 0.1, "epochs": 10},
    ("rl", "digits cnn"): {"lr": 0.03},
    ("salun", "digits cnn"): {"lr": 0.03},
    ("ft", "digits cnn"): {"lr": 0.1, "epochs": 20},
    ("l1", "digits cnn"): {"lr": 0.1, "gamma": 0.002},
    ("iu", "digits cnn"): {"alpha": 300.0},
    ("be", "digits cnn"): {"lr": 0.001, "epochs": 10},
    ("bs", "digits cnn"): {"lr": 0.003, "epochs": 5, "bound": 0.3},
    ("ssd", "digits cnn"): {"alpha": 5.0, "dampening": 1.0},
    ("jit", "digits cnn"): {"lr": 0.01, "epochs": 3},
    ("scrub", "digits cnn"): {"lr": 0.02, "epochs": 3},
    ("first-order", "digits cnn"): {"tau": 0.3},
    ("second-order", "digits cnn"): {"tau": 1000.0},
    ("eu-k", "digits cnn"): {"k": 1, "epochs": 20},
    ("pgu", "digits cnn"): {"gamma": 0.8},
    ("rayleigh", "emoji"): {"rank": 2, "epsilon": 0.3},  # found on dog, pizza and horse
    ("ft", "cifar10"): {"epochs": 2},
    ("l1", "cifar10"): {"epochs": 2},
    ("rl", "cifar10"): {"epochs": 2},
    ("salun", "cifar10"): {"epochs": 2},
    ("scrub", "cifar10"): {"epochs": 2},
}


def preset_of(method: str, preset: str) -> dict[str, Any]:
    """Options of a method for "digits" or "digits cnn"; the network's go before the data's."""
    return PRESETS.get((method, preset.partition(" ")[0]), {}) | PRESETS.get((method, preset), {})


@dataclass(frozen=True, eq=False)
class Result:
    """An unlearned model.

    Attributes:
        model: A new model; the one that went in is unchanged.
        seconds: Run time of the method alone (RTE).
        method: Its name.
        options: What it was run with.
    """

    model: nn.Module
    seconds: float
    method: str
    options: dict[str, Any]


def unlearn(
    model: nn.Module, task: Task, method: str = DEFAULT, *, seed: int = 0, preset: str = "", **options: Any
) -> Result:
    """Make a model forget.

    Args:
        model: Any classifier that maps inputs to logits.
        task: What to forget and to keep.
        method: Name in `METHODS`.
        seed: Of everything random.
        preset: Data, or data and network, whose presets apply, such as "digits" or "digits cnn".
        **options: The method's own options.

    Raises:
        ValueError: On an unknown method or option, or where the method does not apply.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    spec = METHODS[method]
    unknown = sorted(set(options) - set(spec.options) - {"cache", "retained"})
    if unknown:
        raise ValueError(f"{method} has no option {unknown[0]!r}; it has {', '.join(spec.options) or 'none'}")
    settings = spec.options | preset_of(method, preset) | options
    where, name = spec.where.split(":")
    function = getattr(importlib.import_module(f"erase_sd.vision.{where}"), name)
    start = time.perf_counter()
    new = function(model, task, seed=seed, **settings)
    seconds = time.perf_counter() - start
    told = {k: v for k, v in settings.items() if k not in ("cache", "retained")}
    return Result(new.eval(), seconds, method, told)
