"""`python -m lab.vision_tune`: each rival's options, found on classes that our tables do not show.

On digits against Retrain; with `--cifar FILE` on the ResNet-20 that `python -m lab.vision_train`
keeps. Prints lines for `lab/vision_presets.py`; started again, it goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from erase_sd.vision import Task, load_data, make_task, measure, unlearn
from erase_sd.vision.metrics import average_gap
from erase_sd.vision.models import trained
from lab.journal import Journal
from lab.vision_cases import Setting
from lab.vision_presets import GRIDS, GRIDS_CIFAR, TUNED_ON, TUNED_ON_CIFAR, preset_of
from lab.vision_runs import in_precision, task_of
from lab.vision_train import own

Grids = Mapping[str, Mapping[str, tuple[Any, ...]]]


def tune(
    setting: Setting, methods: Sequence[str], grids: Grids, tasks: Sequence[Task], journal: Journal
) -> dict[str, dict[str, Any]]:
    """Each method's setting with the smallest mean gap to the references over some tasks.

    References are Retrain's numbers where the setting retrains, and otherwise the mask's, which on
    whole classes differ from Retrain's by less than methods do from each other.

    Raises:
        ValueError: If a method failed on all of its grid.
    """
    model = setting.original(0)
    references = []
    for t in tasks:
        if setting.retrain:
            anew = preset_of("retrain", setting.preset)
            kind, seed, options = "retrain", 100, anew
        else:
            kind, seed, options = "mask", 0, {}
        references.append(measure(unlearn(model, t, kind, seed=seed, **options).model, t))
    found: dict[str, dict[str, Any]] = {}
    for method in tqdm(methods, desc=setting.name):
        tried: list[tuple[float, dict[str, Any]]] = []
        for values in itertools.product(*grids[method].values()):
            options = dict(zip(grids[method], values, strict=True))
            key = json.dumps([setting.name, method, options, [t.name for t in tasks]])
            if key not in journal:
                journal.put(key, _gap(setting, method, options, tasks, references))
            gap = journal.get(key)
            tqdm.write(f"    {method} {options}: {gap}")
            if gap is not None:
                tried.append((gap, options))
        if not tried:
            raise ValueError(f"{method} failed everywhere on its grid")
        gap, found[method] = min(tried, key=lambda one: one[0])
        tqdm.write(f'    ("{method}", "{setting.preset}"): {found[method]},  # {gap:.2f}')
    return found


def _gap(
    setting: Setting,
    method: str,
    options: dict[str, Any],
    tasks: Sequence[Task],
    references: Sequence[dict[str, float]],
) -> float | None:
    """Mean gap of one setting; None if it failed on a task."""
    gaps = []
    for task, reference in zip(tasks, references, strict=True):
        try:
            with in_precision(setting, method):
                new = unlearn(setting.original(0), task, method, **options).model
                gaps.append(average_gap(measure(new, task), reference))
        except (ValueError, RuntimeError) as error:
            tqdm.write(f"    {method} {options}: {str(error).splitlines()[0]}")
            return None
    return float(np.mean(gaps))


def main(argv: list[str] | None = None) -> int:
    """Tune on digits, or on CIFAR-10."""
    p = argparse.ArgumentParser(prog="python -m lab.vision_tune", description=__doc__)
    p.add_argument("--cifar", type=Path, help="the npz; without it, digits")
    p.add_argument("--method", action="append", default=[], choices=GRIDS, help="repeatable")
    p.add_argument("--work", type=Path, default=Path("build/vision"))
    args = p.parse_args(argv)
    if args.cifar is not None:
        setting = own(args.work, load_data(str(args.cifar)), (0.05, 0.05))
        setting = replace(setting, retrain=False)  # no Retrain without these classes is trained
        tasks = [task_of(setting, f"class:{c}", 0) for c in TUNED_ON_CIFAR]
        journal = Journal(args.work / "tune-cifar10.jsonl")
        tune(setting, args.method or list(GRIDS_CIFAR), GRIDS_CIFAR, tasks, journal)
        return 0
    data = load_data("digits")
    for network in ("mlp", "cnn"):

        @cache
        def original(seed: int, network: str = network) -> nn.Module:
            return trained(network, data, seed=seed)

        setting = Setting(data, original, f"digits {network}", True, f"{network} digits")
        tasks = [make_task(data, f"class:{c}") for c in TUNED_ON]
        journal = Journal(args.work / f"tune-{network}.jsonl")
        tune(setting, args.method or list(GRIDS), GRIDS, tasks, journal)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
