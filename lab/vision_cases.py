"""The papers' tables as lists of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from erase_sd.vision import METHODS, Data


@dataclass(frozen=True)
class Case:
    """One unlearning run.

    Attributes:
        row: Row of the table that it counts for.
        forget: As for `make_task`.
        method: Name in `METHODS`, or "original".
        seed: Of the original model and of the method.
        options: Of the method.
        shots: Show the method only so many forget samples.
        external: Show it the samples of another data set, or test samples, instead of those to be
            forgotten.
        siblings: Show it as retained only the samples of these finer names.
    """

    row: str
    forget: str
    method: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    shots: int | None = None
    external: bool = False
    siblings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Setting:
    """Where a table is made.

    Attributes:
        data: Samples.
        original: The trained model of a seed.
        preset: Data whose presets apply.
        retrain: Whether a retrained reference is affordable: without one there is no gap.
        name: For people.
        identity: Everything that makes the original models what they are; in the journal's keys.
        outside: Another data set of the same classes, for external samples; None takes unseen ones
            of the same set.
        passes: Seconds for what the last layer reads on one sample, where `data` are such features
            already; added to each method's time by how many samples it reads.
        probe: Whether relearning is measured: edits of the last layer leave what it reads as it
            was.
        anew: Retrain made elsewhere, by forget specification and seed: the network, and the seconds
            it took; None trains it here.
        share: How much of a task's training samples and of its test samples the methods and the
            metrics see.
        precision: In which what trains and what is measured multiplies; closed forms take float32.
        layers: Of the network in the order in which they run, for the table of layers.
        draws: Forget samples, one after another, that relearning from one is averaged over.
    """

    data: Data
    original: Callable[[int], nn.Module]
    preset: str
    retrain: bool
    name: str
    identity: str = ""
    outside: Data | None = None
    passes: float = 0.0
    probe: bool = True
    anew: Callable[[str, int], tuple[nn.Module, float]] | None = None
    share: tuple[float, float] = (1.0, 1.0)
    precision: Literal["float32", "bfloat16"] = "float32"
    layers: tuple[str, ...] = ()
    draws: int = 3


TABLES = {
    "class-wise": "one class after another (Unlink T2, 5, 13-17; one setting for all classes)",
    "multi-class": "two, three and five classes at once (Unlink T11), Unlink at each k",
    "subclass": "samples of a finer noun; the class stays (Unlink T3, T9)",
    "random": "a tenth of the training samples (Unlink T10)",
    "shots": "forget samples that the method sees × directions it takes (Unlink T6)",
    "ranks": "number of directions, 1 to 10 (Unlink T19), and Eq. 15 as printed",
    "external": "forget features from samples of another set (Unlink T7)",
    "layers": "which layer is edited, one by one, the last or all (Unlink T8)",
    "alphas": "GF at each α of its grid, and at the published one",
    "frontier": "two-sided edits: how far, and what that costs",
    "clip": "zero-shot classes of CLIP's image tower, with FT, GA, ℓ1 (Unlink T12)",
}


def _each(row: str, method: str, forgets: Sequence[str], seeds: int, **more: Any) -> list[Case]:
    return [Case(row, f, method, s, **more) for f in forgets for s in range(seeds)]


def cases(
    table: str,
    data: Data,
    *,
    methods: Sequence[str],
    classes: Sequence[int],
    seeds: int,
    layers: Sequence[str] = (),
) -> list[Case]:
    """All cases of a table.

    Args:
        table: Of `TABLES`.
        data: Whose classes and finer names are forgotten.
        methods: Of the tables that compare methods.
        classes: One forgotten after another.
        seeds: How many.
        layers: Names in the order in which they run, for the table "layers".

    Raises:
        ValueError: If there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"no table {table!r}; there are {', '.join(TABLES)}")
    forgets = [f"class:{c}" for c in classes]
    found: list[Case] = []
    if table == "class-wise":
        for m in methods:
            found += _each(m, m, forgets, seeds)
    elif table == "clip":
        for m in ("unlink", "rayleigh", "gf", "mask", "ft", "ga", "l1"):
            found += _each(m, m, forgets, seeds)
        found += _each(
            "unlink, qkv and MLP of all blocks",
            "unlink",
            forgets,
            seeds,
            options={"layers": "vision.*"},
        )
    elif table == "multi-class":
        found = _several(data, methods, classes, seeds)
    elif table == "subclass":
        found = _subclasses(data, methods, len(classes), seeds)
    elif table == "random":
        for m in methods:
            if m != "mask" and m != "two-sided":
                found += _each(m, m, ["random:0.1"], seeds)
        middle = {"layers": "middle"}
        found += _each("rayleigh, middle layers", "rayleigh", ["random:0.1"], seeds, options=middle)
        below = {"layers": "all"}
        found += _each(
            "unlink-below, all layers", "unlink-below", ["random:0.1"], seeds, options=below
        )
    else:
        found = _ablation(table, forgets, seeds)
    if table == "layers":
        found += _one_by_one(layers, forgets, seeds)
    if table == "frontier":
        options = {"layers": tuple(layers[-4:])}
        row = "two-sided, last 4 layers"
        found += _each(row, "two-sided", forgets, seeds, options=options) if layers else []
    return found


def _one_by_one(names: Sequence[str], forgets: Sequence[str], seeds: int) -> list[Case]:
    """Single layers, counted from the one that runs last: at most six, evenly apart."""
    found = []
    for back in np.unique(np.linspace(1, len(names), min(6, len(names))).round().astype(int)):
        name = names[-back]
        for m in ("unlink", "rayleigh"):
            row = f"{m}, {back} from the end ({name})"
            found += _each(row, m, forgets, seeds, options={"layers": name})
    return found


def _several(data: Data, methods: Sequence[str], classes: Sequence[int], seeds: int) -> list[Case]:
    found = []
    total = len(data.classes)
    for count in (2, 3, 5):
        groups = []
        for start in classes[:3]:
            groups.append("class:" + ",".join(str(c % total) for c in range(start, start + count)))
        for m in methods:
            found += _each(f"{m}, {count} classes", m, groups, seeds)
        for k in {1, 2, 3, 5, 10} - {count}:  # at k = count stands the default
            options = {"rank": k}
            found += _each(
                f"unlink k = {k}, {count} classes", "unlink", groups, seeds, options=options
            )
    return found


def _subclasses(data: Data, methods: Sequence[str], count: int, seeds: int) -> list[Case]:
    """Some nouns with at least 50 samples.

    Rayleigh also with nothing but one sibling to keep, as in Table 3.
    """
    if data.train_fine is None:
        raise ValueError(f"{data.name} has no finer names than its classes")
    nouns = np.array(data.train_fine)
    names = [n for n, c in zip(*np.unique(nouns, return_counts=True), strict=True) if c >= 50]
    chosen = names[:: max(1, len(names) // count)][:count]
    found = []
    for m in methods:
        if m not in ("mask", "two-sided"):
            found += _each(m, m, [f"subclass:{n}" for n in chosen], seeds)
    labels = data.train_y.numpy()
    for n in chosen:
        kin = sorted({str(o) for o in nouns[labels == labels[nouns == n][0]]} & set(names) - {n})
        if kin:
            row = "rayleigh, one sibling kept"
            found += _each(row, "rayleigh", [f"subclass:{n}"], seeds, siblings=(kin[0],))
    return found


def _ablation(table: str, forgets: Sequence[str], seeds: int) -> list[Case]:
    """The tables of one or two methods."""
    found: list[Case] = []

    def add(row: str, method: str, options: Mapping[str, Any] | None = None, **more: Any) -> None:
        found.extend(_each(row, method, forgets, seeds, options=options or {}, **more))

    if table == "shots":
        for count in (1, 5, 10, 50, None):
            for k in (1, 2, 5):
                if count is None or k <= count:
                    add(
                        f"unlink, {count or 'all'} samples, k = {k}",
                        "unlink",
                        {"rank": k},
                        shots=count,
                    )
            add(f"rayleigh, {count or 'all'} samples", "rayleigh", shots=count)
    elif table == "ranks":
        for k in range(1, 11):
            add(f"unlink, k = {k}", "unlink", {"rank": k})
        for variant in ("hard", "lsq", "paper"):
            add(
                f"rayleigh, {variant}" + (" (Eq. 15 as printed)" if variant == "paper" else ""),
                "rayleigh",
                {"variant": variant},
            )
    elif table == "external":
        for m in ("unlink", "rayleigh"):
            add(f"{m}, internal samples", m)
            add(f"{m}, external samples", m, external=True)
    elif table == "layers":
        for select in ("middle", "all"):
            for m in ("unlink", "rayleigh"):
                add(f"{m}, {select}", m, {"layers": select})
        add("rayleigh, all, recomputed", "rayleigh", {"layers": "all", "recompute": True})
    elif table == "alphas":
        add("gf, grid on held-out samples", "gf")
        add("gf, published α (100, 3)", "gf", {"alphas_retain": (100,), "alphas_forget": (3,)})
        for r in (10, 100, 1000):
            for f in (1, 10, 100):
                add(f"gf, α ({r}, {f})", "gf", {"alphas_retain": (r,), "alphas_forget": (f,)})
    elif table == "frontier":
        add("rayleigh, last", "rayleigh")
        for mu in (0.1, 0.3, 1.0, 3.0):
            add(f"two-sided, μ = {mu:g}", "two-sided", {"mu": mu})
    assert all(c.method in METHODS for c in found)
    return found
