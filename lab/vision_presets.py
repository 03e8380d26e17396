"""Options of rival methods for our tables, and the grids in which they were found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from tqdm import tqdm

from erase_sd.vision import METHODS, load_data, make_task, measure, unlearn
from erase_sd.vision.metrics import average_gap
from erase_sd.vision.models import trained

# By method and data, or data and network; the network's go before the data's. Those for digits were
# found on classes 0, 4 and 7 of one seed by `python -m lab.vision_presets`; tables show them beside
# the other seven.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("retrain", "digits"): {"epochs": 40, "lr": 0.05, "batch": 64},
    ("ga", "digits mlp"): {"lr": 0.03, "epochs": 10},
    ("rl", "digits mlp"): {"lr": 0.03},
    ("salun", "digits mlp"): {"lr": 0.03},
    ("ft", "digits mlp"): {"lr": 0.2, "epochs": 20},
    ("l1", "digits mlp"): {"lr": 0.1, "gamma": 0.005},
    ("iu", "digits mlp"): {"alpha": 30.0},
    ("be", "digits mlp"): {"lr": 0.001, "epochs": 10},
    ("bs", "digits mlp"): {"lr": 0.003, "epochs": 5, "bound": 0.3},
    ("ssd", "digits mlp"): {"alpha": 5.0, "dampening": 1.0},
    ("jit", "digits mlp"): {"lr": 0.01, "epochs": 5},
    ("scrub", "digits mlp"): {"lr": 0.05, "epochs": 6},
    ("first-order", "digits mlp"): {"tau": 0.03},
    ("second-order", "digits mlp"): {"tau": 100.0},
    ("eu-k", "digits"): {"epochs": 20, "lr": 0.05},
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
    ("pgu", "digits"): {"gamma": 0.8},
    ("rayleigh", "emoji"): {"rank": 2, "epsilon": 0.3},  # found on dog, pizza and horse
    ("retrain", "cifar10"): {
        "epochs": 10,
        "lr": 0.1,
        "batch": 64,
        "optimizer": "nesterov",
        "augment": True,
        "schedule": "one-cycle",
        "precision": "bfloat16",
    },
    ("ft", "cifar10"): {"epochs": 2},
    ("l1", "cifar10"): {"epochs": 2},
    ("rl", "cifar10"): {"epochs": 2},
    ("salun", "cifar10"): {"epochs": 2},
    ("scrub", "cifar10"): {"epochs": 2},
}

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ga": {"lr": (1e-3, 3e-3, 1e-2, 3e-2, 0.1), "epochs": (5, 10, 20)},
    "rl": {"lr": (0.01, 0.03, 0.1)},
    "salun": {"lr": (0.01, 0.03, 0.1)},
    "ft": {"lr": (0.01, 0.03, 0.1, 0.2, 0.4), "epochs": (10, 20)},
    "l1": {"lr": (0.01, 0.03, 0.1), "gamma": (5e-5, 5e-4, 2e-3, 5e-3, 1e-2)},
    "iu": {"alpha": (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)},
    "be": {"lr": (1e-3, 3e-3, 1e-2), "epochs": (1, 2, 5, 10)},
    "bs": {"lr": (3e-3, 0.01, 0.03), "epochs": (5, 10, 20), "bound": (0.1, 0.3)},
    "ssd": {"alpha": (2.0, 5.0, 10.0, 20.0, 50.0), "dampening": (0.1, 1.0)},
    "jit": {"lr": (1e-3, 3e-3, 1e-2), "epochs": (1, 3, 5)},
    "scrub": {"lr": (5e-4, 5e-3, 2e-2, 5e-2, 0.1), "epochs": (3, 6)},
    "ntk": {"ridge": (0.1, 1.0, 10.0, 100.0)},
    "first-order": {"tau": (3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)},
    "second-order": {"tau": (10.0, 100.0, 1000.0, 1e4)},
    "eu-k": {"k": (1, 2, 3), "epochs": (10, 20), "lr": (0.01, 0.05)},
    "pgu": {"gamma": (0.8, 0.9, 0.95, 0.99), "criterion": ("sigma2", "sigma")},
    "unlink": {"rank": tuple(range(1, 11))},
}
TUNED_ON = (0, 4, 7)


def preset_of(method: str, preset: str) -> dict[str, Any]:
    """Options of a method for "digits" or "digits cnn"; the network's go before the data's."""
    return PRESETS.get((method, preset.partition(" ")[0]), {}) | PRESETS.get((method, preset), {})


def tune(network: str, methods: list[str]) -> dict[str, dict[str, Any]]:
    """Each rival's best setting on digits.

    By its mean gap to retraining on three classes of one seed.
    """
    data = load_data("digits")
    tasks = [make_task(data, f"class:{c}") for c in TUNED_ON]
    model = trained(network, data)
    anew = preset_of("retrain", "digits")
    references = [measure(unlearn(model, t, "retrain", seed=100, **anew).model, t) for t in tasks]
    found: dict[str, dict[str, Any]] = {}
    for method in tqdm(methods, desc=network):
        best: tuple[float, dict[str, Any]] | None = None
        for values in itertools.product(*GRIDS[method].values()):
            options = dict(zip(GRIDS[method], values, strict=True))
            try:
                new = [unlearn(model, t, method, **options).model for t in tasks]
                pairs = zip(new, tasks, references, strict=True)
                gap = float(np.mean([average_gap(measure(m, t), r) for m, t, r in pairs]))
            except ValueError as error:
                tqdm.write(f"    {method} {options}: {error}")
                continue
            if best is None or gap < best[0]:
                best = gap, options
        if best is None:
            raise ValueError(f"{method} failed everywhere on its grid")
        found[method] = best[1]
        tqdm.write(f'    ("{method}", "digits {network}"): {best[1]},  # {best[0]:.2f}')
    return found


if __name__ == "__main__":
    for name in ("mlp", "cnn"):
        tune(name, [m for m in METHODS if m in GRIDS])
