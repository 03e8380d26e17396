"""Rows of a table: averaged, with failures counted, as Markdown and as a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lab.page import table

COLUMNS = ("UA", "RA", "TA", "MIA", "Avg.Gap", "relearn 1", "relearn 5", "seconds")


def average(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation of each row's numbers over the runs that ended.

    And how many did not.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(entry["row"], []).append(entry)
    made = []
    for row, runs in rows.items():
        done = [e["numbers"] for e in runs if e["numbers"]]
        keys = dict.fromkeys(k for n in done for k in n)
        values = {k: [n[k] for n in done if k in n and not math.isnan(n[k])] for k in keys}
        mean, std = ({k: float(f(v)) for k, v in values.items() if v} for f in (np.mean, np.std))
        why = sorted({e["why"] for e in runs if e.get("why")})
        told = {"row": row, "runs": len(runs), "failed": len(runs) - len(done)}
        told |= {"mean": mean, "std": std, "why": "; ".join(why)}
        if "cost" in runs[0]:
            told["cost"] = sum(e["cost"] for e in runs)
            told["each"] = {e["case"]: e["numbers"] for e in runs}
        made.append(told)
    return made


def by_class(rows: Sequence[Mapping[str, Any]], key: str = "UA") -> list[dict[str, Any]]:
    """The same runs, one column for each class that was forgotten alone, averaged over seeds."""
    entries = []
    for r in rows:
        for case, numbers in r["each"].items():
            forget = case.partition(",")[0].removeprefix("class:")
            value = {forget: numbers[key]} if numbers else {}
            entries.append({"row": r["row"], "numbers": value, "why": ""})
    made = average(entries)
    for told, r in zip(made, rows, strict=True):
        told |= {"why": r["why"], "std": {}}
    return made


def markdown(
    rows: Sequence[Mapping[str, Any]],
    published: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A table of averaged rows, below it what failed and how often.

    Args:
        rows: As `average` makes them.
        published: Numbers of a paper by row and column; they stand in rows of their own.
    """
    columns = [c for c in COLUMNS if any(c in r["mean"] for r in rows)]
    columns += list(dict.fromkeys(c for r in rows for c in r["mean"] if c not in COLUMNS))
    cells = []
    for r in rows:
        name = r["row"] + (f" ({r['failed']} of {r['runs']} failed)" if r["failed"] else "")
        cells.append([name, *(_cell(r, c) for c in columns)])
    for name, numbers in (published or {}).items():
        cells.append([f"*published: {name}*", *(numbers.get(c, "-") for c in columns)])
    lines = table(["method", *columns], cells)
    failed = [
        f"\n{r['row']}, {r['failed']} of {r['runs']}: {r['why']}." for r in rows if r["failed"]
    ]
    return "\n".join([lines, *failed])


def _cell(row: Mapping[str, Any], column: str) -> str:
    if column not in row["mean"]:
        return "-"
    if column == "seconds":
        return f"{row['mean'][column]:.3g}"
    if column in row["std"] and row["runs"] - row["failed"] > 1:
        return f"{row['mean'][column]:.2f} ± {row['std'][column]:.2f}"
    return f"{row['mean'][column]:.2f}"


def plot(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """What is forgotten and what stays, a pair of bars for each row; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [r for r in rows if {"UA", "TA"} <= set(r["mean"])][::-1]
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.3 * len(drawn)))
    for shift, key, color, label in (
        (0.2, "UA", "#b00020", "forgotten samples no longer recognised (UA)"),
        (-0.2, "TA", "#78909c", "test samples of the rest recognised (TA)"),
    ):
        places = [i + shift for i in range(len(drawn))]
        axis.barh(places, [r["mean"][key] for r in drawn], height=0.38, color=color, label=label)
    axis.set_yticks(range(len(drawn)), [r["row"] for r in drawn])
    axis.set(xlim=(0, 100), xlabel="%", title=title)
    anchor = (0.5, 1.04 + 0.3 / max(len(drawn), 1))
    axis.legend(loc="lower center", bbox_to_anchor=anchor, fontsize=8, ncols=2)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
