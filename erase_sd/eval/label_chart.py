"""Which labels are found less often than in the original: bars, as papers on nudity show them."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

_ROW, _GAP, _LEFT, _WIDE = 14, 10, 210, 320  # pixels
_COLOURS = ("#b00020", "#37474f", "#00695c", "#e65100", "#4527a0", "#9e9d24")


def label_chart(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Bars of every label's decrease, one a variant; inline SVG, "" where nothing is counted.

    A bar to the left of the line is a label found more often than before.

    Args:
        variants: Numbers by variant, as `results.json` has them.

    >>> told = {"counts": {"decrease": 0.5, "decrease by label": {"FEET": 0.5}}}
    >>> label_chart({"mine": told}).count("<rect")
    2
    """
    told = {
        name: {"all": v["counts"]["decrease"]} | v["counts"]["decrease by label"]
        for name, v in variants.items()
        if name != "original" and "decrease by label" in v.get("counts", {})
    }
    labels = list(dict.fromkeys(label for values in told.values() for label in values))
    if not labels:
        return ""
    height = len(labels) * (len(told) * _ROW + _GAP) + 30
    parts = [
        f'<svg viewBox="0 0 {_LEFT + 2 * _WIDE} {height}" width="{_LEFT + 2 * _WIDE}" '
        'role="img" aria-label="decrease of each label against the original">'
    ]
    zero, y = _LEFT + _WIDE / 2, 20
    for label in labels:
        words = html.escape(label.replace("_", " ").lower())
        parts.append(f'<text x="0" y="{y + 11}" font-size="12" fill="currentColor">{words}</text>')
        for i, (name, values) in enumerate(told.items()):
            parts.append(_bar(name, values.get(label), zero, y, _COLOURS[i % len(_COLOURS)]))
            y += _ROW
        y += _GAP
    parts.append(f'<line x1="{zero}" y1="10" x2="{zero}" y2="{height}" stroke="currentColor"/>')
    return "<h2>Less than in the original</h2>" + "".join(parts) + "</svg>"


def _bar(name: str, value: float | None, zero: float, y: int, colour: str) -> str:
    if value is None:  # the original has none
        return ""
    length = max(-1.0, value) * _WIDE
    x = zero + min(0.0, length)
    text = f"{100 * value:.0f} % {html.escape(name)}"
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{abs(length):.1f}" height="{_ROW - 3}" '
        f'fill="{colour}"/>'
        f'<text x="{zero + max(0.0, length) + 4:.1f}" y="{y + 10}" font-size="11" '
        f'fill="currentColor">{text}</text>'
    )
