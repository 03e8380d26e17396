"""The papers' tables: which cases, run resumably, averaged over classes and seeds, as Markdown, JSON and a plot."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from erase_sd.vision import METHODS, preset_of, unlearn
from erase_sd.vision.data import Data
from erase_sd.vision.layers import layers
from erase_sd.vision.metrics import average_gap, measure, penultimate, relearn
from erase_sd.vision.pgu import Cache, depoison, incremental
from erase_sd.vision.task import Samples, Task, make_task
from erase_sd.vision.train import accuracy

COLUMNS = ("UA", "RA", "TA", "MIA", "Avg.Gap", "relearn 1", "relearn 5", "seconds")


@dataclass(frozen=True)
class Case:
    """One unlearning run.

    Attributes:
        row: Row of the table that it counts for.
        forget: As for `make_task`.
        method: Name in `METHODS`.
        seed: Of the original model and of the method.
        options: Of the method.
        shots: Show the method only so many forget samples.
        external: Show it test samples of the class instead of the training samples to be forgotten.
    """

    row: str
    forget: str
    method: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    shots: int | None = None
    external: bool = False


@dataclass(frozen=True)
class Setting:
    """Where a table is made.

    Attributes:
        data: Samples.
        original: The trained model of a seed.
        preset: Data whose presets apply.
        retrain: Whether a retrained reference is affordable: without one there is no gap.
        name: For people.
        identity: Everything that makes the original models what they are; in the journal's keys.
    """

    data: Data
    original: Callable[[int], nn.Module]
    preset: str
    retrain: bool
    name: str
    identity: str = ""


def _each(row: str, method: str, forgets: Sequence[str], seeds: int, **more: Any) -> list[Case]:
    return [Case(row, f, method, s, **more) for f in forgets for s in range(seeds)]


def cases(table: str, data: Data, *, methods: Sequence[str], classes: Sequence[int], seeds: int) -> list[Case]:
    """All cases of a table.

    Raises:
        ValueError: If there is no such table.
    """
    forgets = [f"class:{c}" for c in classes]
    closed = [m for m in methods if METHODS[m].kind == "closed-form"] or ["unlink", "rayleigh"]
    found: list[Case] = []
    if table == "class-wise" or table == "clip":
        for m in methods:
            found += _each(m, m, forgets, seeds)
    elif table == "multi-class":
        for count in (2, 3, 5):
            groups = ["class:" + ",".join(str(c % len(data.classes)) for c in range(s, s + count)) for s in classes[:3]]
            for m in methods:
                found += _each(f"{m}, {count} classes", m, groups, seeds)
    elif table == "subclass":
        if data.train_fine is None:
            raise ValueError(f"{data.name} has no finer names than its classes")
        names = [n for n, c in zip(*np.unique(data.train_fine, return_counts=True), strict=True) if c >= 50]
        for m in methods:
            if m != "mask":
                found += _each(m, m, [f"subclass:{n}" for n in names[:: max(1, len(names) // len(classes))]], seeds)
    elif table == "random":
        for m in methods:
            if m != "mask":
                found += _each(m, m, ["random:0.1"], seeds)
        found += _each("unlink-below, all layers", "unlink-below", ["random:0.1"], seeds, options={"layers": "all"})
    elif table == "shots":
        for count in (1, 5, 10, 50):
            for m in closed:
                found += _each(f"{m}, {count} samples", m, forgets, seeds, shots=count)
    elif table == "ranks":
        for rank in (1, 2, 3, 5, 10):
            for m in ("unlink", "rayleigh"):
                found += _each(f"{m}, rank {rank}", m, forgets, seeds, options={"rank": rank})
    elif table == "external":
        for m in closed:
            found += _each(m, m, forgets, seeds)
            found += _each(f"{m}, external samples", m, forgets, seeds, external=True)
    elif table == "layers":
        for select in ("last", "all"):
            for m in ("unlink", "rayleigh"):
                found += _each(f"{m}, {select}", m, forgets, seeds, options={"layers": select})
        found += _each("rayleigh, all, recomputed", "rayleigh", forgets, seeds,
                       options={"layers": "all", "recompute": True})  # fmt: skip
    elif table == "gf":
        found += _each("gf, grid on held-out samples", "gf", forgets, seeds)
        found += _each("gf, published α (100, 3)", "gf", forgets, seeds,
                       options={"alphas_retain": (100,), "alphas_forget": (3,)})  # fmt: skip
        found += _each("rayleigh", "rayleigh", forgets, seeds)
    else:
        raise ValueError(f"no table {table!r}; there are {', '.join(TABLES)}")
    return found


TABLES = {
    "class-wise": "one class after another: UA, RA, TA, MIA, gap to retraining, relearning",
    "multi-class": "two, three and five classes at once",
    "subclass": "samples of a finer noun; the class stays",
    "random": "a tenth of the training samples",
    "shots": "the method sees 1, 5, 10, 50 forget samples",
    "ranks": "rank of the edit",
    "external": "forget features from samples that were not trained on",
    "layers": "the last layer, or all",
    "clip": "zero-shot classes of CLIP's image tower",
    "gf": "GF with its grid on held-out samples and at the published setting",
    "incremental": "PGU: four classes one after another, from one cache",
    "depoison": "PGU: wrongly labelled samples, five budgets",
}


def run(table: str, setting: Setting, work: Path, *, methods: Sequence[str], classes: Sequence[int], seeds: int) -> Any:
    """Run a table's cases that are not in the journal yet; returns rows of averaged numbers."""
    work.mkdir(parents=True, exist_ok=True)
    if table == "incremental":
        return _incremental(setting, classes, seeds)
    if table == "depoison":
        return _depoison(setting, seeds)
    journal = work / f"{table}-{setting.name.replace(' ', '-')}.jsonl"
    done: dict[str, dict[str, Any]] = {}
    if journal.exists():
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut by an interruption; measured again
            done[entry["key"]] = entry

    @cache
    def reference(forget: str, seed: int) -> tuple[Task, dict[str, float]]:
        task = make_task(setting.data, forget, seed=seed)
        if not setting.retrain:
            return task, {}
        result = unlearn(setting.original(seed), task, "retrain", seed=seed + 100, preset=setting.preset)
        return task, _numbers(result.model, task, result.seconds, seed)

    plan = cases(table, setting.data, methods=methods, classes=classes, seeds=seeds)
    shown = list(dict.fromkeys((c.forget, c.seed) for c in plan))
    plan = [Case("original", f, "original", s) for f, s in shown] + plan
    if setting.retrain:
        plan = [Case("retrain", f, "retrain", s) for f, s in shown] + [c for c in plan if c.method != "retrain"]
    entries = []
    for case in tqdm(plan, desc=f"{table}, {setting.name}", unit="run"):
        spec = METHODS.get(case.method)
        told = [asdict(case), setting.name, setting.identity, setting.retrain, spec.options if spec else None]
        told.append(preset_of(case.method, setting.preset))
        key = json.dumps(told, sort_keys=True, default=str)
        if key not in done:
            task, retrained = reference(case.forget, case.seed)
            why = ""
            if case.method == "retrain":
                numbers = retrained
            elif case.method == "original":
                numbers = _numbers(setting.original(case.seed), task, 0.0, case.seed)
            else:
                numbers, why = _attempt(setting, case, task)
            if retrained and numbers:
                numbers = numbers | {"Avg.Gap": average_gap(numbers, retrained)}
            done[key] = {"key": key, "row": case.row, "numbers": numbers, "why": why}
            with journal.open("a", encoding="utf-8") as f:
                f.write(json.dumps(done[key]) + "\n")
        entries.append(done[key])
    return average(entries)


def _attempt(setting: Setting, case: Case, task: Task) -> tuple[dict[str, float], str]:
    """Numbers of one run, or why the method does not apply here: one row must not cost the table."""
    model = setting.original(case.seed)
    try:
        result = unlearn(model, _shown(task, case), case.method, seed=case.seed, preset=setting.preset, **case.options)
        return _numbers(result.model, task, result.seconds, case.seed), ""
    except ValueError as error:
        return {}, str(error)


def _shown(task: Task, case: Case) -> Task:
    """What the method gets to see."""
    forget = task.test_forget if case.external else task.forget
    if case.shots is not None:
        forget = forget.sample(case.shots, case.seed)
    return Task(
        forget, task.retain, task.test, task.test_forget, task.classes, task.outputs, task.name, task.validation
    )


def _numbers(model: nn.Module, task: Task, seconds: float, seed: int) -> dict[str, float]:
    found = measure(model, task, seed=seed) | {"seconds": seconds}
    if task.classes:
        found |= {"relearn 1": relearn(model, task, shots=1), "relearn 5": relearn(model, task, shots=5)}
    return found


def average(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of each row's numbers over its runs."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    whys = {e["row"]: e["why"] for e in entries if e.get("why")}
    for entry in entries:
        rows.setdefault(entry["row"], []).append(entry["numbers"])
    made = []
    for row, numbers in rows.items():
        keys = dict.fromkeys(k for n in numbers for k in n)
        values = {k: [n[k] for n in numbers if k in n and not math.isnan(n[k])] for k in keys}
        mean, std = ({k: float(f(v)) for k, v in values.items() if v} for f in (np.mean, np.std))
        made.append({"row": row, "runs": len(numbers), "mean": mean, "std": std, "why": whys.get(row, "")})
    return made


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of averaged rows."""
    columns = [c for c in COLUMNS if any(c in r["mean"] for r in rows)]
    columns += [c for r in rows for c in r["mean"] if c not in COLUMNS and c not in columns]
    columns = list(dict.fromkeys(columns))
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for r in rows:
        cells = []
        for c in columns:
            if c not in r["mean"]:
                cells.append("-")
            elif c == "seconds":
                cells.append(f"{r['mean'][c]:.3g}")
            else:
                cells.append(f"{r['mean'][c]:.2f} ± {r['std'][c]:.2f}" if r["runs"] > 1 else f"{r['mean'][c]:.2f}")
        lines.append(f"| {r['row']} | " + " | ".join(cells) + " |")
    return lines + [f"\n{r['row']}: {r['why']}." for r in rows if r.get("why")]


def plot(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """What is forgotten and what stays, a pair of bars for each row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [r for r in rows if {"UA", "TA"} <= set(r["mean"])][::-1]
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.3 * len(shown)))
    for shift, key, color, label in (
        (0.2, "UA", "#b00020", "forgotten samples no longer recognised (UA)"),
        (-0.2, "TA", "#78909c", "test samples of the rest recognised (TA)"),
    ):
        places = [i + shift for i in range(len(shown))]
        axis.barh(places, [r["mean"][key] for r in shown], height=0.38, color=color, label=label)
    axis.set_yticks(range(len(shown)), [r["row"] for r in shown])
    axis.set(xlim=(0, 100), xlabel="%", title=title)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.04 + 0.3 / max(len(shown), 1)), fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def headed(model: nn.Module, data: Data) -> tuple[nn.Module, Data]:
    """The last layer alone, with what it reads as data: for methods that edit nothing else, the same numbers sooner."""
    head = nn.Sequential(layers(model, "last")[0].module)
    x = [penultimate(model, part) for part in (data.train_x, data.test_x)]
    return head.eval(), Data(data.name, x[0], data.train_y, x[1], data.test_y, data.classes, data.train_fine,
                             data.test_fine)  # fmt: skip


# -- PGU's own tables -----------------------------------------------------------------------------


def _errors(model: nn.Module, forget: Samples, retain: Samples, test: Samples) -> dict[str, float]:
    return {"D_f error": 100 - accuracy(model, forget), "D_r error": 100 - accuracy(model, retain),
            "D_test error": 100 - accuracy(model, test)}  # fmt: skip


def _incremental(setting: Setting, classes: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Four classes one after another, from the cache of the whole training set; errors after each step."""
    entries = []
    data = setting.data
    for seed in range(seeds):
        model = setting.original(seed)
        left = Cache.of(model, Samples(data.train_x, data.train_y))
        gone: list[int] = []
        for c in list(classes)[:4]:
            gone.append(c)
            step, so_far = make_task(data, f"class:{c}"), make_task(data, "class:" + ",".join(map(str, gone)))
            # The method may read nothing but the forget samples: it gets them as "retained" ones as well.
            blind = Task(step.forget, step.forget, so_far.test, step.test_forget, step.classes, step.outputs, step.name)
            model, left = incremental(model, [blind], left, seed=seed)
            row = f"PGU after {len(gone)}"
            entries.append({"row": row, "numbers": _errors(model, so_far.forget, so_far.retain, so_far.test)})
            if setting.retrain:
                again = unlearn(setting.original(seed), so_far, "retrain", seed=seed + 100, preset=setting.preset).model
                numbers = _errors(again, so_far.forget, so_far.retain, so_far.test)
                entries.append({"row": f"retrain without {len(gone)}", "numbers": numbers})
    return average(entries)


def _depoison(setting: Setting, seeds: int) -> list[dict[str, Any]]:
    """A model trained with wrong labels; of these 10 … 100 % are known and unlearned."""
    from erase_sd.vision.baselines import reset
    from erase_sd.vision.train import cross_entropy, one_cycle, sgd

    entries = []
    data = setting.data
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data.train_y), generator=generator)
        bad = order[: len(order) // 20]
        y = data.train_y.clone()
        shift = torch.randint(1, len(data.classes), (len(bad),), generator=generator)
        y[bad] = (y[bad] + shift) % len(data.classes)
        whole = Samples(data.train_x, y)
        model = reset(copy.deepcopy(setting.original(seed)), seed=seed)  # the original is others' too
        model = sgd(model, whole, cross_entropy, epochs=80, lr=0.05, batch=64, seed=seed, schedule=one_cycle)
        test = Samples(data.test_x, data.test_y)
        none = test[torch.zeros(len(test), dtype=torch.bool)]

        parts = {
            "poisoned labels kept": whole[bad],
            "true labels found": Samples(data.train_x[bad], data.train_y[bad]),
            "TA": test,
        }

        def numbers(net: nn.Module, parts: dict[str, Samples] = parts) -> dict[str, float]:
            return {name: accuracy(net, part) for name, part in parts.items()}

        entries.append({"row": "poisoned model", "numbers": numbers(model)})
        for share in (0.1, 0.25, 0.5, 0.75, 1.0):
            known = torch.zeros(len(y), dtype=torch.bool)
            known[bad[: max(1, round(share * len(bad)))]] = True
            task = Task(whole[known], whole[~known], test, none, (), len(data.classes), "poison")
            entries.append({"row": f"PGU, {share:.0%} known", "numbers": numbers(depoison(model, task, seed=seed))})
    return average(entries)
