"""The page of the axes: one number an axis and method, a picture, where the default loses."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from erase_sd.algebra.methods import DEFAULT
from erase_sd.eval.report import table as run_table
from erase_sd.eval.run_folder import ORIGINAL
from erase_sd.training import TRAINERS
from lab.page import fill, table, write_page
from lab.study.page import harmonic

Numbers = Mapping[str, Any]
OWN = (DEFAULT, f"{DEFAULT}-robust")
_ARTISTS = ("noto", "blob", "twemoji", "fluent", "emojitwo")


def axes_of(results: Mapping[str, Any], method: str) -> dict[str, float]:
    """A method's number on every axis that was measured; 1 is best.

    Args:
        results: Contents of `results.json` by protocol.
        method: Name of a variant.
    """
    found: dict[str, float] = {}

    def numbers(name: str) -> Numbers | None:
        variants = results.get(f"emoji-{name}", {}).get("variants", {})
        return variants.get(method)

    if canvas := numbers("canvas"):
        groups = canvas["accuracy"]["groups"]
        for label, styles in (("objects", False), ("artists", True)):
            own = [g for n, g in groups.items() if (n in _ARTISTS) == styles]
            if own:
                found[label] = _mean(g[k] for g in own for k in ("UA", "IRA", "CRA"))
    if pinpoint := numbers("pinpoint"):
        found["pinpoint"] = _parts(pinpoint, ("name", "kind", "look"))
    if pairs := numbers("pairs"):
        found["the rest"] = _parts(pairs, ("other object", "artist", "background"))
    if names := numbers("names"):
        found["names"] = 1 - _parts(names, tuple(names["parts"]))
    if latents := numbers("latents"):
        probes = {k: v for k, v in latents["attacks"].items() if k != "none"}
        found["probes"] = 1 - _mean(v["mean"] for v in probes.values())
    if pinpoint:
        found["clean"] = pinpoint["instead"]["confidence"]["mean"]
        before = _to_the_rest(results["emoji-pinpoint"]["variants"][ORIGINAL])
        found["world"] = min(1.0, before / max(_to_the_rest(pinpoint), 1e-9))
    if sequence := numbers("sequence"):
        last = list(sequence["accuracy"]["groups"].values())[-1]
        found["sequence"] = harmonic(last["UA"], last["RA"])
    return found


def _to_the_rest(numbers: Numbers) -> float:
    """How far what is drawn of the forgotten is from everything else that the original draws."""
    return float(numbers["frechet to the original"]["forgotten to the rest"])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _parts(numbers: Numbers, parts: Sequence[str]) -> float:
    return _mean(numbers["parts"][p]["mean"] for p in parts if p in numbers["parts"])


def losses(axes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Where the default is not first, and to whom it loses by how much."""
    lines = []
    for axis in axes[DEFAULT]:
        rivals = {m: v[axis] for m, v in axes.items() if m not in OWN and m != ORIGINAL}
        own = axes[DEFAULT][axis]
        if not rivals:
            continue
        best = max(rivals, key=lambda m: rivals[m])
        rank = 1 + sum(v > own for v in rivals.values())
        if rank > 1:
            ahead = f"{best} {rivals[best]:.3f}"
            lines.append(f"- **{axis}**: {own:.3f}, place {rank}; first is {ahead}.")
    return lines or ["The default is first, or shares the first place, on every axis."]


def axes_page(
    results: Mapping[str, Any], found: Mapping[str, Any], out: Path, command: str
) -> Path:
    """Write `axes.md`, `.json` and `.png`.

    Args:
        results: Contents of `results.json` by protocol.
        found: `closed` and `trained` settings, `seconds` of trainings, `others`: names tuned on.
        out: Folder.
        command: What made it.
    """
    methods = list(dict.fromkeys(m for r in results.values() for m in r["variants"]))
    axes = {m: axes_of(results, m) for m in methods}
    columns = list(axes[DEFAULT])
    order = sorted(methods, key=lambda m: (m != ORIGINAL, -_mean(axes[m].values())))
    rows = []
    for m in order:
        best = {c: max(axes[n][c] for n in methods if n != ORIGINAL) for c in columns}
        cells = [
            f"**{axes[m][c]:.3f}**" if axes[m][c] == best[c] and m != ORIGINAL
            else f"{axes[m][c]:.3f}"
            for c in columns
        ]  # fmt: skip
        rows.append([m + (" (the default)" if m == DEFAULT else ""), *cells,
                     f"{_mean(axes[m].values()):.3f}"])  # fmt: skip
    sequence = results.get("emoji-sequence", {}).get("variants", {}).get(DEFAULT)
    longest = list(sequence["accuracy"]["groups"])[-1] if sequence else "no"
    text = fill(
        "axes",
        command,
        others=", ".join(found["others"]),
        longest=longest,
        table=table(["method", *columns, "mean"], rows),
        losses="\n".join(losses(axes)),
        trained=_trained(found),
        settings=_settings(found["closed"]),
        protocols="\n\n".join(
            f"### {n}\n\n" + "\n".join(run_table([r])) for n, r in results.items()
        )
        + _curve(results),
    )
    data = {"axes": axes, "found": found, "results": results}
    return write_page(out, "axes", text, data=data, picture=plot(axes, order))


def _trained(found: Mapping[str, Any]) -> str:
    rows = [
        [
            m,
            f"{found['seconds'][m]:.0f}",
            *(_words(found["trained"][k][m]) for k in found["trained"]),
        ]
        for m in found["trained"]["object"]
    ]
    return table(["method", "seconds", *found["trained"]], rows)


def _settings(best: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [[m, *(_words(best[k][m]) for k in best)] for m in best["object"]]
    return table(["method", *best], rows)


def _words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} = {v}" for k, v in setting.items()) or "defaults"


def _curve(results: Mapping[str, Any]) -> str:
    """Gone and kept after 1, 2, 5, … objects, by method."""
    if "emoji-sequence" not in results:
        return ""
    variants = results["emoji-sequence"]["variants"]
    counts = list(variants[DEFAULT]["accuracy"]["groups"])
    rows = []
    for name, numbers in variants.items():
        groups = numbers["accuracy"]["groups"]
        rows.append([name, *(f"{groups[c]['UA']:.2f} / {groups[c]['RA']:.2f}" for c in counts)])
    head = ["gone / kept after", *counts]
    return "\n\n### One after another\n\n" + table(head, rows)


def plot(axes: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> bytes:
    """Parallel axes, one line a method; a PNG."""
    columns = list(axes[DEFAULT])
    figure = Figure(figsize=(1.6 * len(columns) + 2.5, 5))
    axis = figure.subplots()
    shades = [f"C{i}" for i in range(10) if i != 3]  # not the default's red
    for i, name in enumerate(order):
        own, original = name in OWN, name == ORIGINAL
        axis.plot(
            range(len(columns)),
            [axes[name][c] for c in columns],
            color="#b00020" if own else "#999999" if original else shades[i % 9],
            linewidth=2.5 if own else 1,
            linestyle="--"
            if name == OWN[1]
            else ":"
            if original
            else "-."
            if name in TRAINERS
            else "-",
            marker=".",
            label=name,
            zorder=3 if own else 2,
        )
    axis.set_xticks(range(len(columns)), columns)
    axis.set(ylim=(-0.03, 1.03), xlim=(-0.2, len(columns) - 0.8))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
