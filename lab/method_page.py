"""What the method study found, as numbers, tables and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from erase_sd.methods import DEFAULT


def frechet(a: np.ndarray, b: np.ndarray, *, dims: int = 16) -> float:
    """Fréchet distance of two feature sets on the top principal directions of the first.

    With fewer images than feature dimensions the full covariance is singular and the distance
    meaningless; `dims` directions are estimated well from tens of images.
    """
    centre = a.mean(0)
    _, _, vt = np.linalg.svd(a - centre, full_matrices=False)
    p = vt[:dims].T
    a, b = (a - centre) @ p, (b - centre) @ p
    ca, cb = np.cov(a.T), np.cov(b.T)
    # tr (Ca Cb)^(1/2) from the eigenvalues of the symmetric product Ca^(1/2) Cb Ca^(1/2)
    values, vectors = np.linalg.eigh(ca)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross)


def summary(entry: dict[str, Any]) -> dict[str, float]:
    """Forgotten share, retained ratio and their harmonic mean for one edit."""
    left = [entry["after"][r] for r in ("forget", "synonym") if r in entry["after"]]
    # Chance that a concept is gone, synonyms included with equal weight.
    forgotten = 1 - float(np.mean(left))
    ratio = {
        r: entry["after"][r] / max(entry["before"][r], 1e-9)
        for r in ("in", "out", "neighbour")
        if r in entry["after"]
    }
    retained = ratio.get("out", 1.0)
    mean = 2 * forgotten * retained / max(forgotten + retained, 1e-9)
    return {
        "forgotten": forgotten,
        "retained": retained,
        "harmonic": mean,
        **{f"ratio_{r}": v for r, v in ratio.items()},
    }


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


def table(
    entries: list[dict[str, Any]], kind: str
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """One Markdown table, best first, and its numbers."""
    groups: dict[str, list[dict[str, float]]] = {}
    for e in entries:
        if e["kind"] == kind:
            name = e["method"] + (" (as published)" if e["phase"] == "published" else "")
            if e["method"] == DEFAULT and not e["setting"]:
                name = f"{DEFAULT} (the default)"
            row = summary(e) | {k: e["after"].get(k, float("nan")) for k in ("forget", "synonym")}
            row |= {k: e[k] for k in ("drift", "frechet", "null_change", "norm")}
            row["revivable"] = e["revivable"]
            groups.setdefault(name, []).append(row)
    numbers = {
        name: {c: float(np.nanmean([r.get(c, np.nan) for r in rows])) for c in COLUMNS}
        for name, rows in groups.items()
    }
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in sorted(numbers.items(), key=lambda item: -item[1]["harmonic"]):
        cells = [f"{row[c]:.2f}" if c in ("norm", "frechet") else f"{row[c]:.3f}" for c in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines, numbers


def plot(numbers: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Forgotten against retained, one panel per kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(numbers), figsize=(5 * len(numbers), 4.6), sharey=True)
    for axis, (kind, rows) in zip(axes, numbers.items(), strict=True):
        for name, row in rows.items():
            x, y = row["ratio_out"], 1 - (row["forget"] + row["synonym"]) / 2
            axis.scatter(x, y, color="#b00020" if name.startswith(DEFAULT) else "#37474f")
            axis.annotate(name, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axis.set(
            xlabel="retained (unlisted bystanders)",
            title=kind,
            xlim=(-0.05, 1.1),
            ylim=(-0.05, 1.05),
        )
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forgotten (own prompts and synonyms)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


INTRODUCTION = """# Which method forgets best, and at what cost

Made by `make study` (`python -m erase_sd.eval.study --seeds {seeds} --tune-seeds {tune_seeds}`) on the shipped
emoji-sd: {steps} DDIM steps, guidance {guidance:g}, {seeds} seeds, the independent judge. Each method at the best of
a few settings (listed below), found on other concepts ({others}); `(as published)` at its source's own defaults. The
world is small and its model is young: differences of a few hundredths are noise.

- **forget**, **synonyms**: how often the judge still finds the concept (lower is better), in sentences the
  edit was not built from, and under names it was never told.
- **listed**, **unlisted**, **neighbours**: accuracy relative to the original on bystanders in the retain
  list, in no list, and of the same family (1 is unharmed). **Harmonic mean** of 1 - (forget + synonyms) / 2
  and unlisted. Of five artists one is always seen, so where none is named each has a share, given below the
  table: an artist cannot be forgotten further than that without being avoided.
- **drift**: mean absolute pixel change of bystanders at equal seeds (0..1); **Fréchet** distance of their
  judge features on their 16 principal directions; **empty prompt**: largest relative change of its states;
  **‖T‖** the edit's gain; **revivable**: how much of what sets the concept apart an embedding can bring back,
  by algebra (0 is nothing).

"""


def gates(numbers: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """What was aimed at, and whether the default reached it."""
    name = f"{DEFAULT} (the default)"
    lines = ["| goal for the default | at least | reached | |", "|---|---|---|---|"]
    for kind, bar in (("object", 0.97), ("family", 0.95), ("artist", 0.95), ("ten", 0.93)):
        rows = numbers[kind]
        value = rows[name]["harmonic"]
        lines.append(
            f"| harmonic mean, {kind} | {bar} | {value:.3f} | {'met' if value >= bar else '**missed**'} |"
        )
        best = max((r["harmonic"], n) for n, r in rows.items() if not n.startswith(DEFAULT))
        if kind != "ten":
            first = value >= best[0]
            lines.append(
                f"| first of all methods, {kind} | {best[0]:.3f} ({best[1]}) | {value:.3f} "
                f"| {'met' if first else '**missed**'} |"
            )
    worst = max(rows[name]["null_change"] for rows in numbers.values())
    lines.append(
        f"| change of the empty prompt | at most 0.01 | {worst:.4f} | {'met' if worst <= 0.01 else '**missed**'} |"
    )
    return lines


def attack_table(attacks: list[dict[str, Any]]) -> list[str]:
    """How many erased objects come back, by method."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in attacks:
        robust = ", robust" if (entry["setting"] or {}).get("robust") else ""
        groups.setdefault(entry["method"] + robust, []).append(entry)
    lines = [
        "| method | found by its own prompt | found after the attack | objects revived |",
        "|---|---|---|---|",
    ]
    for name, rows in groups.items():
        plain, after = (float(np.mean([r[k] for r in rows])) for k in ("plain", "attacked"))
        revived = sum(r["attacked"] >= 0.5 for r in rows)
        lines.append(f"| {name} | {plain:.2f} | {after:.2f} | {revived} of {len(rows)} |")
    return lines


def write(
    out: Path,
    entries: list[dict[str, Any]],
    attacks: list[dict[str, Any]],
    best: dict[str, dict[str, dict[str, Any]]],
    kinds: dict[str, tuple[str, ...]],
    about: dict[str, Any],
) -> None:
    """Write `method-study.md`, `.json` and `.png`, and print the page."""
    lines = INTRODUCTION.format(**about).splitlines()
    numbers, tables = {}, []
    for kind, names in kinds.items():
        rows, numbers[kind] = table(entries, kind)
        tables += [f"## {kind}: {', '.join(names)}", "", *rows, ""]
        if kind == "artist":
            plain = {e["name"]: e["before"]["plain"] for e in entries if e["kind"] == "artist"}
            told = ", ".join(f"{n} {v:.2f}" for n, v in plain.items())
            tables += [f"Seen where no artist is named, in the original: {told}.", ""]
    lines += [*gates(numbers), "", "![forgotten against retained](method-study.png)", "", *tables]
    objects = ", ".join(dict.fromkeys(e["name"] for e in attacks))
    lines += [
        "## Attacked",
        "",
        "Five free token embeddings, 40 gradient steps through the edited network towards eight pictures of the "
        f"erased object ({objects}); 16 images each. An object is revived when the judge finds it in half of them.",
        "",
        *attack_table(attacks),
        "",
        "## Settings chosen",
        "",
        "| method | objects | families | artists |",
        "|---|---|---|---|",
    ]
    for method in best["object"]:
        cells = [
            ", ".join(f"{k} = {v}" for k, v in best[kind][method].items()) or "defaults"
            for kind in best
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    out.mkdir(exist_ok=True)
    plot(numbers, out / "method-study.png")
    (out / "method-study.md").write_text("\n".join(lines) + "\n")
    (out / "method-study.json").write_text(
        json.dumps({"settings": best, "numbers": numbers, "attacks": attacks}, indent=1)
    )
    print("\n".join(lines))
