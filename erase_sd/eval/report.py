"""Results for people: a table for the terminal, a self-contained page for the browser."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from erase_sd.eval.label_chart import label_chart

_SHOWN = 200  # rows of the drill-down; the manifest has all


def cells(numbers: dict[str, Any]) -> dict[str, str]:
    """One variant's numbers as short texts, by column."""
    found: dict[str, str] = {}
    for name in ("UA", "RA", "IRA", "CRA"):
        if name in numbers.get("accuracy", {}):
            found[f"{name} %"] = _percent(numbers["accuracy"][name])
    for attack, value in numbers.get("attacks", {}).items():
        found[f"ASR {attack} %"] = _percent(value)
    for part, value in numbers.get("parts", {}).items():
        found[f"{part} %"] = _percent(value)
    if "instead" in numbers:
        found["sure of what is there %"] = _percent(numbers["instead"]["confidence"])
    if "counts" in numbers:
        found["found"] = str(numbers["counts"]["total"])
        found["images with any"] = str(numbers["counts"]["images with any"])
        if numbers["counts"].get("decrease") is not None:
            found["decrease %"] = f"{100 * numbers['counts']['decrease']:.1f}"
        if numbers["counts"].get("decrease of images") is not None:
            found["of images %"] = f"{100 * numbers['counts']['decrease of images']:.1f}"
    if "clip score" in numbers:
        found["CLIP score"] = f"{numbers['clip score']['mean']:.2f}"
    if "retain" in numbers.get("drift", {}):
        found["drift of retained %"] = f"{100 * numbers['drift']['retain']['mean']:.2f}"
    if "retain" in numbers.get("lpips", {}):
        found["LPIPS of retained"] = f"{numbers['lpips']['retain']['mean']:.4f}"
    for name in ("frechet", "kid", "cmmd"):
        if f"{name} to the original" in numbers:
            found[f"{name} to original"] = f"{numbers[f'{name} to the original']['value']:.4g}"
            rest = numbers[f"{name} to the original"].get("forgotten to the rest")
            if rest is not None and "instead" in numbers:
                found[f"{name} of forgotten to the rest"] = f"{rest:.4g}"
        if f"{name} to real" in numbers:
            found[f"{name} to real"] = f"{numbers[f'{name} to real']['value']:.4g}"
    return found


def _percent(interval: dict[str, float]) -> str:
    return (
        f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    )


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown table of all variants of some results; brackets are 95 % bootstrap intervals."""
    rows = []
    for result in results:
        for name, numbers in sorted(
            result["variants"].items(), key=lambda item: item[0] != "original"
        ):
            rows.append((result["protocol"], name, cells(numbers)))
    columns = list(dict.fromkeys(c for _, _, found in rows for c in found))
    many = len(results) > 1
    head = (["protocol"] if many else []) + ["variant", *columns]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for protocol, name, found in rows:
        first = [f"{protocol['name']} {protocol['hash']}"] if many else []
        lines.append(
            "| " + " | ".join([*first, name, *(found.get(c, "-") for c in columns)]) + " |"
        )
    if not many:
        lines.append(
            f"\nprotocol {results[0]['protocol']['name']}, hash {results[0]['protocol']['hash']}"
        )
    return lines


def _picture(path: Path, size: int = 96) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is no picture")
    with Image.open(path) as image:
        small = image.convert("RGB")
        if small.width > 2 * size:
            small.thumbnail((2 * size, 2 * size))
        buffer = io.BytesIO()
        small.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width="{size}" height="{size}" alt="" src="data:image/png;base64,{data}">'


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: #1b1b1b }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .3em .7em; text-align: left }
th { background: #f3f3f3 } td.bad { background: #fde0e0 } td.good { background: #e2f3e2 }
img { image-rendering: pixelated; display: block } code { background: #f3f3f3; padding: 0 .3em }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd }
  th, code { background: #2a2a2a } td.bad { background: #512 } td.good { background: #143 }
  th, td { border-color: #444 } }
"""


def page(result: dict[str, Any], run: Path) -> str:
    """A page with tables, a plot, and every prompt beside its pictures; no external request.

    Args:
        result: Contents of `results.json`.
        run: The run's folder, for manifests and images.

    Raises:
        ValueError: If the run's images are gone.
    """
    protocol = result["protocol"]
    names = list(result["variants"])
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(protocol['name'])}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(protocol['name'])}</h1>",
        f"<p>{html.escape(str(protocol['rows']))} images for each variant; protocol hash "
        f"<code>{html.escape(str(protocol['hash']))}</code>. Numbers with another hash are "
        "not comparable. Brackets are 95 % bootstrap intervals over images.</p>",
        _html_table(result),
        _plot(result),
        label_chart(result["variants"]),
        "<h2>By concept</h2>",
        _groups(result),
        "<h2>Certificates</h2>",
        _certificates(result),
        "<h2>Every prompt</h2>",
    ]
    parts += _every_prompt(names, run)
    how = html.escape(json.dumps(protocol, indent=1))
    parts.append(f"<h2>How</h2><pre>{how}</pre>")
    for name in names:
        about = json.dumps(result["variants"][name]["about"], indent=1)
        parts.append(f"<h3>{html.escape(name)}</h3><pre>{html.escape(about)}</pre>")
    return "\n".join(parts) + "</html>\n"


def _manifests(names: Sequence[str], run: Path) -> dict[str, list[dict[str, Any]]]:
    """Every variant's images, from what the run wrote."""
    manifests = {}
    for name in names:
        path = run / name / "manifest.jsonl"
        if not path.resolve().is_relative_to(run.resolve()):
            raise ValueError(f"{path} is not in the run's folder")
        if not path.is_file():
            raise ValueError(f"{path} is missing: the report needs the run's images")
        lines = path.read_text(encoding="utf-8").splitlines()
        manifests[name] = [json.loads(line) for line in lines]
        for entry in manifests[
            name
        ]:  # a foreign manifest must not show other files of this machine
            if not (run / name / entry["file"]).resolve().is_relative_to((run / name).resolve()):
                raise ValueError(f"{path} names {entry['file']}, which is not in the run's folder")
    return manifests


def _every_prompt(names: Sequence[str], run: Path) -> list[str]:
    """Every prompt beside its pictures; of many an even choice."""
    manifests = _manifests(names, run)
    rows, parts = manifests[names[0]], []
    shown = rows if len(rows) <= _SHOWN else rows[:: -(-len(rows) // _SHOWN)]
    if len(shown) < len(rows):
        parts.append(f"<p>{len(shown)} of {len(rows)}, evenly spread; the manifests list all.</p>")
    head = "".join(f"<th>{html.escape(n)}" for n in names)
    parts.append(f"<table><tr><th>prompt<th>role<th>seed{head}")
    by_id = {n: {e["id"]: e for e in m} for n, m in manifests.items()}
    for row in shown:
        told = [row["prompt"], f"{row['role']}: {row['group']}", str(row["seed"])]
        parts.append("<tr>" + "".join(f"<td>{html.escape(t)}" for t in told))
        parts += ["<td>" + _picture(run / n / by_id[n][row["id"]]["file"]) for n in names]
    return [*parts, "</table>"]


def _html_table(result: dict[str, Any]) -> str:
    found = {n: cells(v) for n, v in result["variants"].items()}
    columns = list(dict.fromkeys(c for f in found.values() for c in f))
    head = "".join(f"<th>{html.escape(c)}" for c in columns)
    body = "".join(
        f"<tr><th>{html.escape(n)}" + "".join(f"<td>{html.escape(f.get(c, '-'))}" for c in columns)
        for n, f in found.items()
    )
    return f"<table><tr><th>variant{head}{body}</table>"


def _groups(result: dict[str, Any]) -> str:
    """UA and RA of every concept under every variant."""
    variants = {
        n: v["accuracy"]["groups"] for n, v in result["variants"].items() if "accuracy" in v
    }
    if not variants:
        return "<p>No accuracy in this protocol.</p>"
    groups = list(next(iter(variants.values())))
    lines = ["<table><tr><th>concept" + "".join(f"<th>{html.escape(n)} UA<th>RA" for n in variants)]
    for group in groups:
        lines.append(f"<tr><th>{html.escape(group)}")
        for found in variants.values():
            for name in ("UA", "RA"):
                value = found.get(group, {}).get(name)
                kind = (
                    ""
                    if value is None
                    else "good"
                    if value >= 0.9
                    else "bad"
                    if value < 0.7
                    else ""
                )
                lines.append(
                    f'<td class="{kind}">' + ("-" if value is None else f"{100 * value:.0f}")
                )
    return "".join(lines) + "</table>"


def _certificates(result: dict[str, Any]) -> str:
    """What each edit does by algebra, with the spectrum of its forget features as bars."""
    columns = {
        "rank": "rank",
        "forget_residual": "forget residual",
        "retain_drift": "retain drift",
        "null_change": "empty prompt",
        "norm": "gain",
        "revivable": "revivable",
    }
    lines = [
        "<table><tr><th>variant<th>concept"
        + "".join(f"<th>{c}" for c in columns.values())
        + "<th>spectrum"
    ]
    for variant, numbers in result["variants"].items():
        for concepts in numbers.get("certificates", {}).values():
            for concept, values in concepts.items():
                cells_ = "".join(
                    f"<td>{values.get(c, '-'):.3g}" if c in values else "<td>-" for c in columns
                )
                lines.append(
                    f"<tr><th>{html.escape(variant)}<td>{html.escape(concept)}{cells_}<td>"
                )
                lines.append(_bars(values.get("spectrum", [])))
    return "".join(lines) + "</table>" if len(lines) > 1 else "<p>No erasures in this run.</p>"


def _bars(shares: Sequence[float]) -> str:
    bars = "".join(
        f'<rect x="{12 * i}" y="{30 - 30 * s:.1f}" width="9" height="{30 * s:.1f}" fill="#b00020"/>'
        for i, s in enumerate(shares)
    )
    return f'<svg width="100" height="30" role="img" aria-label="spectrum">{bars}</svg>'


def _plot(result: dict[str, Any]) -> str:
    """Forgotten against retained, as inline SVG."""
    points = [
        (n, v["accuracy"]["UA"]["mean"], v["accuracy"]["RA"]["mean"])
        for n, v in result["variants"].items()
        if "UA" in v.get("accuracy", {}) and "RA" in v["accuracy"]
    ]
    if not points:
        return ""
    dots = ""
    for name, ua, ra in points:
        x, y = round(60 + 320 * ra), round(340 - 300 * ua)
        dots += f'<circle cx="{x}" cy="{y}" r="5" fill="#b00020"/>'
        dots += f'<text x="{x + 8}" y="{y + 4}" font-size="12" fill="currentColor">'
        dots += f"{html.escape(name)}</text>"
    return (
        '<svg viewBox="0 0 520 390" width="520" role="img" aria-label="forgotten against retained">'
        '<rect x="60" y="40" width="320" height="300" fill="none" stroke="currentColor"/>'
        '<text x="150" y="375" fill="currentColor">retained (RA), 0 to 1</text>'
        '<text x="20" y="260" transform="rotate(-90 20 260)" fill="currentColor">'
        "forgotten (UA), 0 to 1</text>"
        f"{dots}</svg>"
    )
