"""Runs of a table: resumed from a journal, with what failed counted and what each cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from erase_sd.vision import METHODS, Data, Task, make_task, measure, unlearn
from erase_sd.vision.layers import layers
from erase_sd.vision.metrics import average_gap, penultimate, relearned
from lab.journal import Journal
from lab.vision_cases import Case, Setting, cases
from lab.vision_presets import preset_of
from lab.vision_report import average


def run(
    name: str,
    setting: Setting,
    work: Path,
    *,
    methods: Sequence[str],
    classes: Sequence[int],
    seeds: int,
) -> list[dict[str, Any]]:
    """Run a table's cases that are not in the journal yet; returns rows of averaged numbers.

    Each entry keeps the processor seconds of its run, measuring included.
    """
    journal = Journal(work / f"{name}-{setting.name.replace(' ', '-')}.jsonl")
    chosen = {"methods": methods, "classes": classes, "seeds": seeds, "layers": setting.layers}
    plan = cases(name, setting.data, **chosen)  # type: ignore[arg-type]
    forgets = list(dict.fromkeys((c.forget, c.seed) for c in plan))
    first = [Case("original", f, "original", s) for f, s in forgets]
    plan = first + [c for c in plan if c.method not in ("retrain", "original")]
    last = [Case("retrain", f, "retrain", s) for f, s in forgets] if setting.retrain else []
    for case in tqdm([*plan, *last], desc=f"{name}, {setting.name}", unit="run"):
        if _key(case, setting) in journal:
            continue
        start = time.process_time()
        numbers, why = attempt(setting, case, task_of(setting, case.forget, case.seed))
        told: dict[str, Any] = {"row": case.row, "case": f"{case.forget}, seed {case.seed}"}
        told |= {"numbers": numbers, "why": why, "cost": time.process_time() - start}
        journal.put(_key(case, setting), told)
    entries = [journal.get(_key(case, setting)) for case in [*last, *plan]]
    return average(_with_gaps(entries))


def _with_gaps(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries with their distance to Retrain's of the same case, where there is one."""
    known = {e["case"]: e["numbers"] for e in entries if e["row"] == "retrain" and e["numbers"]}
    found = []
    for e in entries:
        numbers = dict(e["numbers"])
        if numbers and e["case"] in known:
            numbers["Avg.Gap"] = average_gap(numbers, known[e["case"]])
        found.append(e | {"numbers": numbers})
    return found


def _key(case: Case, setting: Setting) -> str:
    """Everything that moves a number."""
    spec = METHODS[case.method].options if case.method in METHODS else None
    told = [asdict(case), setting.name, setting.identity, setting.retrain, setting.probe, spec]
    told += [setting.draws] * (setting.draws != 3)
    told += [setting.share, setting.precision, preset_of(case.method, setting.preset)]
    return json.dumps(told, sort_keys=True, default=str)


def task_of(setting: Setting, forget: str, seed: int) -> Task:
    """A task, or the part of it that is looked at here."""
    task = make_task(setting.data, forget, seed=seed)
    parts = {}
    for share, names in zip(
        setting.share, (("forget", "retain"), ("test", "test_forget")), strict=True
    ):
        for name in names if share < 1 else ():
            part = getattr(task, name)
            parts[name] = part.sample(max(1, round(share * len(part))), seed) if len(part) else part
    return replace(task, **parts)


@contextmanager
def in_precision(setting: Setting, method: str) -> Iterator[None]:
    """What trains, and what is measured, in the setting's precision.

    Without autocast's cache: over a whole training it would keep the first step's weights.
    """
    lower = setting.precision == "bfloat16" and (
        method not in METHODS or METHODS[method].kind != "closed-form"
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=lower, cache_enabled=False):
        yield


def attempt(setting: Setting, case: Case, task: Task) -> tuple[dict[str, float], str]:
    """Numbers of one run, or why there are none.

    A method that fails costs its own run alone, and it is counted.
    """
    if case.method == "retrain" and setting.anew is not None:
        return numbers_of(*setting.anew(case.forget, case.seed), task, case, setting), ""
    model = setting.original(case.seed)
    if case.method == "original":
        return numbers_of(model, 0.0, task, case, setting), ""
    options = preset_of(case.method, setting.preset) | dict(case.options)
    seen = task if case.method == "retrain" else shown(task, case, setting)
    seed = case.seed + 100 * (case.method == "retrain")
    try:
        start = time.process_time()
        with in_precision(setting, case.method):
            result = unlearn(model, seen, case.method, seed=seed, **options)
        seconds = time.process_time() - start  # of the processor: others may be at work beside us
        numbers = numbers_of(result.model, seconds, task, case, setting)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        return {}, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    reads = METHODS[case.method]
    read = len(seen.forget) + len(seen.retain) * (reads.retained != "nothing")
    numbers["seconds"] += setting.passes * read * (reads.kind != "trivial")
    return numbers, ""


def numbers_of(
    model: nn.Module, seconds: float, task: Task, case: Case, setting: Setting
) -> dict[str, float]:
    """What was forgotten, what is left, what relearning brings back, and the seconds."""
    with in_precision(setting, "measuring"):
        found = measure(model, task, seed=case.seed) | {"seconds": seconds}
        if task.classes and setting.probe:
            draws = [(1, draw) for draw in range(setting.draws)]
            *ones, five = relearned(model, task, [*draws, (5, 0)])
            found |= {"relearn 1": float(np.mean(ones)), "relearn 5": five}
    return found


def shown(task: Task, case: Case, setting: Setting) -> Task:
    """What the method gets to see."""
    seen = task
    if case.external:
        outside = setting.outside
        other = make_task(outside, case.forget).forget if outside is not None else task.test_forget
        seen = seen.shown(other)
    if case.shots is not None:
        seen = seen.shown(seen.forget.sample(case.shots, case.seed))
    if case.siblings:
        fine = setting.data.train_fine or ()
        wanted = torch.tensor([f in case.siblings for f in fine])
        gone = torch.tensor([f"subclass:{f}" == case.forget for f in fine])
        seen = replace(seen, retain=seen.retain[wanted[~gone]])
    return seen


def headed(model: nn.Module, data: Data) -> tuple[nn.Module, Data, float]:
    """The last layer alone, with what it reads as data: the same numbers sooner.

    Returns:
        The layer, the data, and the processor seconds that one sample's features took.
    """
    head = nn.Sequential(layers(model, "last", data.train_x)[0].module)
    start = time.process_time()
    x = [penultimate(model, part) for part in (data.train_x, data.test_x)]
    each = (time.process_time() - start) / (len(data.train_y) + len(data.test_y))
    fine = (data.train_fine, data.test_fine)
    return (
        head.eval(),
        Data(data.name, x[0], data.train_y, x[1], data.test_y, data.classes, *fine),
        each,
    )
