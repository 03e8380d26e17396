"""The papers' tables for classifiers: resumable, averaged over classes and seeds.

`python -m lab.vision_tables class-wise --model mlp --train --data digits --out build/tables`
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from erase_sd.models.files import file_hash
from erase_sd.vision import (
    METHODS,
    Data,
    Recipe,
    Task,
    load_data,
    load_model,
    make_task,
    measure,
    unlearn,
)
from erase_sd.vision.layers import layers
from erase_sd.vision.metrics import average_gap, penultimate, relearned
from erase_sd.vision.models import trained
from lab.journal import Journal
from lab.page import MEASURED, write_page
from lab.vision_cases import TABLES, Case, Setting, cases
from lab.vision_presets import preset_of
from lab.vision_report import average, markdown, plot


def run(
    name: str,
    setting: Setting,
    work: Path,
    *,
    methods: Sequence[str],
    classes: Sequence[int],
    seeds: int,
) -> list[dict[str, Any]]:
    """Run a table's cases that are not in the journal yet; returns rows of averaged numbers."""
    journal = Journal(work / f"{name}-{setting.name.replace(' ', '-')}.jsonl")

    @cache
    def reference(forget: str, seed: int) -> tuple[Task, dict[str, float]]:
        task = make_task(setting.data, forget, seed=seed)
        if not setting.retrain:
            return task, {}
        anew = preset_of("retrain", setting.preset)
        if setting.preset.startswith("cifar10"):
            anew["resume"] = str(
                work / f"retrain-{setting.name.split()[0]}-{forget}-{seed}-{len(task.retain)}.state"
            )
        result = unlearn(setting.original(seed), task, "retrain", seed=seed + 100, **anew)
        return task, _numbers(result.model, task, result.seconds, seed, setting.probe)

    plan = cases(name, setting.data, methods=methods, classes=classes, seeds=seeds)
    shown = list(dict.fromkeys((c.forget, c.seed) for c in plan))
    first = [Case("original", f, "original", s) for f, s in shown]
    if setting.retrain:
        first = [Case("retrain", f, "retrain", s) for f, s in shown] + first
    plan = first + [c for c in plan if c.method not in ("retrain", "original")]
    entries = []
    for case in tqdm(plan, desc=f"{name}, {setting.name}", unit="run"):
        key = _key(case, setting)
        if key not in journal:
            task, retrained = reference(case.forget, case.seed)
            numbers, why = (
                (retrained, "") if case.method == "retrain" else attempt(setting, case, task)
            )
            if retrained and numbers:
                numbers = numbers | {"Avg.Gap": average_gap(numbers, retrained)}
            journal.put(
                key,
                {
                    "row": case.row,
                    "case": f"{case.forget}, seed {case.seed}",
                    "numbers": numbers,
                    "why": why,
                },
            )
        entries.append(journal.get(key))
    return average(entries)


def _key(case: Case, setting: Setting) -> str:
    """Everything that moves a number."""
    spec = METHODS[case.method].options if case.method in METHODS else None
    told = [asdict(case), setting.name, setting.identity, setting.retrain, setting.probe, spec]
    return json.dumps([*told, preset_of(case.method, setting.preset)], sort_keys=True, default=str)


def attempt(setting: Setting, case: Case, task: Task) -> tuple[dict[str, float], str]:
    """Numbers of one run, or why there are none.

    A method that fails costs its own run alone, and it is counted.
    """
    model = setting.original(case.seed)
    if case.method == "original":
        return _numbers(model, task, 0.0, case.seed, setting.probe), ""
    options = preset_of(case.method, setting.preset) | dict(case.options)
    seen = shown(task, case, setting)
    try:
        result = unlearn(model, seen, case.method, seed=case.seed, **options)
        numbers = _numbers(result.model, task, result.seconds, case.seed, setting.probe)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        return {}, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    reads = METHODS[case.method]
    read = len(seen.forget) + len(seen.retain) * (reads.retained != "nothing")
    numbers["seconds"] += setting.passes * read * (reads.kind != "trivial")
    return numbers, ""


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


def _numbers(
    model: nn.Module, task: Task, seconds: float, seed: int, probe: bool
) -> dict[str, float]:
    found = measure(model, task, seed=seed) | {"seconds": seconds}
    if task.classes and probe:
        *ones, five = relearned(model, task, [(1, 0), (1, 1), (1, 2), (5, 0)])
        found |= {"relearn 1": float(np.mean(ones)), "relearn 5": five}
    return found


def headed(model: nn.Module, data: Data) -> tuple[nn.Module, Data, float]:
    """The last layer alone, with what it reads as data: the same numbers sooner.

    Returns:
        The layer, the data, and the seconds that one sample's features took.
    """
    head = nn.Sequential(layers(model, "last", data.train_x)[0].module)
    start = time.perf_counter()
    x = [penultimate(model, part) for part in (data.train_x, data.test_x)]
    each = (time.perf_counter() - start) / (len(data.train_y) + len(data.test_y))
    fine = (data.train_fine, data.test_fine)
    return (
        head.eval(),
        Data(data.name, x[0], data.train_y, x[1], data.test_y, data.classes, *fine),
        each,
    )


def main(argv: list[str] | None = None) -> int:
    """Make one table."""
    told = "\n".join(f"  {n:<12}{t}" for n, t in TABLES.items())
    p = argparse.ArgumentParser(
        prog="python -m lab.vision_tables",
        description=__doc__,
        epilog=f"tables:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("name", choices=TABLES)
    p.add_argument("--model", required=True, help="as for `erase-concept vision unlearn`")
    p.add_argument(
        "--train", action="store_true", help="train a fresh network of that architecture first"
    )
    p.add_argument("--epochs", type=int, default=40, help="of --train")
    p.add_argument("--data", default="digits")
    p.add_argument("--outside", help="another data set of the same classes, for the table external")
    p.add_argument("--size", type=int)
    p.add_argument(
        "--method",
        action="append",
        default=[],
        choices=METHODS,
        help="of tables that compare; repeatable",
    )
    p.add_argument("--classes", default="", help="numbers, such as 0,3,5 (default: all)")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--no-retrain", action="store_true", help="no retrained reference, hence no gap")
    p.add_argument("--work", type=Path, default=Path("build/vision-tables"))
    p.add_argument("--out", type=Path, default=MEASURED / "vision-tables")
    args = p.parse_args(argv)
    if args.method and args.name in (
        "shots",
        "ranks",
        "external",
        "layers",
        "alphas",
        "frontier",
        "clip",
    ):
        p.error(f"the table {args.name} has methods of its own")
    if args.classes and args.name == "random":
        p.error("the table random forgets no classes")
    if args.outside and args.name != "external":
        p.error("--outside is of the table external")
    data = load_data(args.data, size=args.size)
    classes = [int(c) for c in args.classes.split(",") if c] or list(range(len(data.classes)))
    file = Path(args.model.partition(":")[2] or "-")
    weights = file_hash(file) if file.is_file() else ""
    identity = json.dumps(
        [args.model, weights, args.data, args.size, args.epochs if args.train else 0]
    )

    @cache
    def original(seed: int) -> nn.Module:
        if args.train:
            return trained(args.model, data, Recipe(epochs=args.epochs), seed=seed)
        return load_model(args.model, data.classes, data.channels).eval()

    name = f"{Path(args.model).stem} {data.name}"
    preset = f"{data.name} {args.model.partition(':')[0]}"
    outside = load_data(args.outside, size=args.size) if args.outside else None
    setting = Setting(data, original, preset, not args.no_retrain, name, identity, outside)
    methods = args.method or [m for m in METHODS if m not in ("retrain", "depoison")]
    rows = run(args.name, setting, args.work, methods=methods, classes=classes, seeds=args.seeds)
    text = f"# {args.name}: {TABLES[args.name]}\n\n"
    text += f"{name}, {len(classes)} classes, {args.seeds} seeds.\n\n"
    path = write_page(
        args.out, args.name, text + markdown(rows) + "\n", data=rows, picture=plot(rows, args.name)
    )
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
