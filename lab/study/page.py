"""What the method study found, as numbers, tables and a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from erase_sd.algebra.methods import DEFAULT
from lab.page import Goal, table

Entry = Mapping[str, Any]
Numbers = dict[str, dict[str, float]]  # of one kind: columns by method

COLUMNS = {
    "harmonic": "harmonic mean",
    "forget": "forget",
    "synonym": "synonyms",
    "ratio_in": "listed",
    "ratio_out": "unlisted",
    "ratio_neighbour": "neighbours",
    "drift": "drift",
    "frechet": "Fréchet",
    "null_change": "empty prompt",
    "norm": "‖T‖",
    "revivable": "revivable",
}
BARS = {"object": 0.97, "family": 0.95, "artist": 0.95, "ten": 0.93}
OWN = f"{DEFAULT} (the default)"


def summary(entry: Entry) -> dict[str, float]:
    """Forgotten share, retained ratio and their harmonic mean for one edit.

    >>> e = {"before": {"out": 0.8}, "after": {"forget": 0.2, "synonym": 0.0, "out": 0.4}}
    >>> {k: round(v, 3) for k, v in summary(e).items()}
    {'forgotten': 0.9, 'retained': 0.5, 'harmonic': 0.643, 'ratio_out': 0.5}
    """
    before, after = entry["before"], entry["after"]
    left = [after[r] for r in ("forget", "synonym") if r in after]
    forgotten = 1 - float(np.mean(left))  # synonyms included with equal weight
    roles = [r for r in ("in", "out", "neighbour") if r in after]
    ratio = {r: after[r] / max(before[r], 1e-9) for r in roles}
    retained = ratio.get("out", 1.0)
    return {
        "forgotten": forgotten,
        "retained": retained,
        "harmonic": harmonic(forgotten, retained),
        **{f"ratio_{r}": v for r, v in ratio.items()},
    }


def harmonic(a: float, b: float) -> float:
    """Harmonic mean; 0 where both are."""
    return 2 * a * b / max(a + b, 1e-9)


def numbers_of(entries: Sequence[Entry], kind: str) -> Numbers:
    """The columns of every method over the targets of one kind, best first."""
    groups: dict[str, list[dict[str, float]]] = {}
    for e in entries:
        if e["kind"] == kind:
            name = e["method"] + (" (as published)" if e["phase"] == "published" else "")
            if e["method"] == DEFAULT and not e["setting"]:
                name = OWN
            if e["phase"] == "robust":
                name = f"{e['method']}, robust"
            told = {k: e["after"].get(k, np.nan) for k in ("forget", "synonym")}
            algebra = {k: e[k] for k in ("drift", "frechet", "null_change", "norm", "revivable")}
            groups.setdefault(name, []).append(summary(e) | told | algebra)
    means = {name: {c: _mean(rows, c) for c in COLUMNS} for name, rows in groups.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]["harmonic"]))


def _mean(rows: Sequence[Mapping[str, float]], column: str) -> float:
    values = [r[column] for r in rows if not np.isnan(r.get(column, np.nan))]
    return float(np.mean(values)) if values else float("nan")


def method_table(numbers: Numbers) -> str:
    """One Markdown table."""
    rows = [
        [name, *(f"{row[c]:.2f}" if c in ("norm", "frechet") else f"{row[c]:.3f}" for c in COLUMNS)]
        for name, row in numbers.items()
    ]
    return table(["method", *COLUMNS.values()], rows)


def goals(numbers: Mapping[str, Numbers]) -> list[Goal]:
    """What was aimed at, and whether the default reached it.

    Raises:
        ValueError: If the default was not measured as it is.
    """
    missing = [kind for kind, rows in numbers.items() if OWN not in rows]
    if missing:
        raise ValueError(
            f"expected the default's own row for every kind, got none for {missing[0]}"
        )
    found = []
    for kind, bar in BARS.items():
        rows = numbers[kind]
        value = rows[OWN]["harmonic"]
        found.append(Goal.at_least(f"harmonic mean, {kind}", bar, value))
        if kind != "ten":
            rivals = [(r["harmonic"], n) for n, r in rows.items() if not n.startswith(DEFAULT)]
            best, name = max(rivals)
            bar_text = f"at least {best:.3f} ({name})"
            first = f"first of all methods, {kind}"
            found.append(Goal(first, bar_text, f"{value:.3f}", value >= best))
    worst = max(rows[OWN]["null_change"] for rows in numbers.values())
    return [*found, Goal.at_most("change of the empty prompt", 0.01, worst, "{:.4f}")]


def attack_table(attacks: Sequence[Entry]) -> str:
    """How many erased objects come back, by method."""
    groups: dict[str, list[Entry]] = {}
    for entry in attacks:
        robust = ", robust" if (entry["setting"] or {}).get("robust") else ""
        groups.setdefault(entry["method"] + robust, []).append(entry)
    rows = []
    for name, found in groups.items():
        plain, after = (float(np.mean([r[k] for r in found])) for k in ("plain", "attacked"))
        back = sum(r["attacked"] >= 0.5 for r in found)
        rows.append([name, f"{plain:.2f}", f"{after:.2f}", f"{back} of {len(found)}"])
    head = ["method", "found by its own prompt", "found after the attack", "objects revived"]
    return table(head, rows)


def setting_table(best: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The setting of each method, by kind."""
    rows = []
    for method in best["object"]:
        settings = [best[kind][method] for kind in best]
        told = [", ".join(f"{k} = {v}" for k, v in s.items()) or "defaults" for s in settings]
        rows.append([method, *told])
    return table(["method", "objects", "families", "artists"], rows)


def plot(numbers: Mapping[str, Numbers]) -> bytes:
    """Forgotten against retained, one panel per kind; a PNG."""
    figure = Figure(figsize=(5 * len(numbers), 4.6))
    axes = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for axis, (kind, rows) in zip(axes, numbers.items(), strict=True):
        for name, row in rows.items():
            left = np.nanmean([row["forget"], row["synonym"]])
            x, y = row["ratio_out"], 1 - left
            axis.scatter(x, y, color="#b00020" if name.startswith(DEFAULT) else "#37474f")
            axis.annotate(name, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        label = "retained (unlisted bystanders)"
        axis.set(xlabel=label, title=kind, xlim=(-0.05, 1.1), ylim=(-0.05, 1.05))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forgotten (own prompts and synonyms)")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
