"""Pieces of the page: HTML, in which everything is escaped, and pictures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from erase_sd.demo.house import Visit
from erase_sd.demo.studio import Studio
from erase_sd.erasure import Erasure

if TYPE_CHECKING:
    from erase_sd.demo.classifier import Outcome

CELL = 256  # edge of a picture on the page, pixels


def bars(rows: Sequence[tuple[str, float]], *, kept: bool = False) -> str:
    """Horizontal bars of shares 0..1 with their labels."""
    top = max([v for _, v in rows], default=0) or 1
    look = ' class="kept"' if kept else ""
    cells = [
        f'<span>{html.escape(label)}</span><i{look} style="width:{100 * value / top:.1f}%"></i><span>{value:.0%}</span>'
        for label, value in rows
    ]
    return f'<div class="bars">{"".join(cells)}</div>'


def preflight_html(erasure: Erasure, words: Sequence[tuple[str, float]], seconds: float) -> str:
    """What an erasure would hit."""
    part = erasure.parts[0]
    about = part.certificate
    facts = [
        ("left of the forget prompts, or reversed past strength 1", f"{about['forget_residual']:.1%}"),
        ("what ordinary prompts move, on average", f"{about['retain_drift']:.1%}"),
        ("what the empty prompt moves", f"{about['null_change']:.2%}"),
        ("angle to the space of ordinary prompts", f"{about['angle']:.0f} degrees (0: nothing sets it apart)"),
    ]
    if "revivable" in about:
        facts.append(("what a hostile embedding could revive, by linear estimate", f"{about['revivable']:.0%}"))
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts)
    spectrum = [(f"direction {i + 1}", float(v)) for i, v in enumerate(about["spectrum"][:5])]
    return (
        f"<p><b>{html.escape(part.name)}</b>, {html.escape(part.method)}, rank {about['rank']}, "
        f"strength {part.strength:g}: solved in {seconds:.2f} s</p>"
        f'<table class="facts">{rows}</table>'
        f"<p>Words that move most, besides the forget prompts:</p>{bars(list(words)[:8])}"
        f"<p>How the forget prompts' energy spreads:</p>{bars(spectrum, kept=True)}"
    )


def scores_html(studio: Studio, visit: Visit) -> str:
    """What was seen in each picture, before and after."""
    seen = [studio.seen(images) if images else [] for images in (visit.before, visit.after)]
    who = "judge" if studio.embedded else "NudeNet"
    rows = []
    for shot, before, after in zip(visit.shots, *seen, strict=True):
        kind = "forget" if shot.forget else "keep"
        cells = (kind, shot.prompt, before, after)
        rows.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    summary = ""
    for forget, text in ((True, "to go"), (False, "to stay")):
        counted = [i for i, s in enumerate(visit.shots) if studio.embedded and s.target and s.forget is forget]
        if counted:
            hits = [sum(row[i] == visit.shots[i].target for i in counted) for row in seen]
            summary += (
                f"<p>recognised of what was {text}: {hits[0]}/{len(counted)} before, {hits[1]}/{len(counted)} after</p>"
            )
    head = "".join(f"<th>{t}</th>" for t in ("", "prompt", f"{who}, before", f"{who}, after"))
    return f'{summary}<table class="facts"><tr>{head}</tr>{"".join(rows)}</table>'


def outcome_html(outcome: Outcome, method: str) -> str:
    """Numbers as a table, classes as bars before and after."""
    names = {
        "UA": "forgotten samples no longer recognised",
        "RA": "retained samples recognised",
        "TA": "test samples recognised",
        "MIA": "forgotten samples taken for unseen",
    }
    rows = ""
    for key, text in names.items():
        cells = "".join(f"<td>{outcome.numbers[when][key]:.1f} %</td>" for when in ("before", "after"))
        rows += f"<tr><td>{text}</td>{cells}</tr>"
    shown = outcome.classes[:12]
    cells = "".join(
        f'<span>{html.escape(n)}</span><span><i class="kept" style="width:{100 * b:.0f}%"></i>'
        f'<i style="width:{100 * a:.0f}%"></i></span><span>{b:.0%} to {a:.0%}</span>'
        for n, b, a in shown
    )
    more = f" (the first {len(shown)} of {len(outcome.classes)})" if len(shown) < len(outcome.classes) else ""
    return (
        f"<p><b>{html.escape(method)}</b>: {1000 * outcome.seconds:.0f} ms</p>"
        f'<table class="facts"><tr><th></th><th>before</th><th>after</th></tr>{rows}</table>'
        f'<p>Test samples recognised, class by class{more}, before (grey) and after:</p><div class="bars">{cells}</div>'
    )


def pair(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two pictures side by side."""
    edge = max(CELL // 2, min(before.width, CELL))
    sheet = Image.new("RGB", (2 * edge + 4, edge), "white")
    for x, image in ((0, before), (edge + 4, after)):
        sheet.paste(image.resize((edge, edge), Image.Resampling.BICUBIC), (x, 0))
    return sheet


def large(image: Image.Image) -> Image.Image:
    """A picture as the slider shows it."""
    return image.resize((2 * CELL, 2 * CELL), Image.Resampling.BICUBIC) if image.width < CELL else image
