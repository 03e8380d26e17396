"""HTML of the page; whatever comes from outside is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.report import layers_text
from erase_sd.demo.pictures import Shot

_MEASURES = {
    "UA": "forgotten samples no longer recognised",
    "RA": "retained samples recognised",
    "TA": "test samples recognised",
    "MIA": "forgotten samples taken for unseen",
}


def bars(rows: Sequence[tuple[str, float]], *, kept: bool = False) -> str:
    """Horizontal bars of shares 0..1 with their labels.

    >>> bars([("<b>", 0.5)])[:53]
    '<div class="bars"><span>&lt;b&gt;</span><i style="wid'
    """
    top = max([v for _, v in rows], default=0) or 1
    look = ' class="kept"' if kept else ""
    cells = [
        f'<span>{html.escape(label)}</span><i{look} style="width:{100 * value / top:.1f}%"></i>'
        f"<span>{value:.0%}</span>"
        for label, value in rows
    ]
    return f'<div class="bars">{"".join(cells)}</div>'


def preflight_html(erasure: Erasure, words: Sequence[tuple[str, float]], seconds: float) -> str:
    """What an erasure would hit."""
    part = erasure.concepts[0]
    about = part.certificate
    facts = [
        ("of the forget prompts' signal is gone", f"{1 - about['forget_residual']:.1%}"),
        ("what ordinary prompts move, on average", f"{about['retain_drift']:.1%}"),
        ("what the empty prompt moves", f"{about['null_change']:.2%}"),
        (
            "angle to the space of ordinary prompts",
            f"{about['angle']:.0f} degrees (0: nothing sets it apart)",
        ),
    ]
    if len(part.layers) > 1:
        facts.append(("holds for", f"{layers_text(part.layers)}; figures are the worse one's"))
    if "unreachable" in about:
        share = f"{about['unreachable']:.0%}"
        facts.append(("of what sets it apart no input at all can make the values write", share))
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts)
    spectrum = [(f"direction {i + 1}", float(v)) for i, v in enumerate(about["spectrum"][:5])]
    return (
        f"<p><b>{html.escape(part.name)}</b>, {html.escape(part.method)}, rank {about['rank']}, "
        f"strength {part.strength:g}: solved in {seconds:.2f} s</p>"
        f'<table class="facts">{rows}</table>'
        f"<p>Words that move most, besides the forget prompts:</p>{bars(list(words)[:8])}"
        f"<p>How the forget prompts' energy spreads:</p>{bars(spectrum, kept=True)}"
    )


def scores_html(
    shots: Sequence[Shot], before: Sequence[str], after: Sequence[str], *, judged: bool
) -> str:
    """What was seen in each picture, before and after.

    Args:
        shots: The pictures.
        before: What was seen in those of the untouched model.
        after: What was seen in those of the erased one.
        judged: Whether the judge of the embedded world looked, and can be counted; else NudeNet.
    """
    rows = []
    for shot, *found in zip(shots, before, after, strict=True):
        cells = ("forget" if shot.forget else "keep", shot.prompt, *found)
        rows.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    summary = ""
    for forget, text in ((True, "to go"), (False, "to stay")):
        targets = {i: s.target for i, s in enumerate(shots) if s.target and s.forget is forget}
        if judged and targets:
            b, a = (sum(seen[i] == t for i, t in targets.items()) for seen in (before, after))
            n = len(targets)
            summary += f"<p>recognised of what was {text}: {b}/{n} before, {a}/{n} after</p>"
    who = "judge" if judged else "NudeNet"
    head = "".join(f"<th>{t}</th>" for t in ("", "prompt", f"{who}, before", f"{who}, after"))
    return f'{summary}<table class="facts"><tr>{head}</tr>{"".join(rows)}</table>'


def outcome_html(
    method: str,
    seconds: float,
    numbers: Mapping[str, Mapping[str, float]],
    classes: Sequence[tuple[str, float, float]],
) -> str:
    """What forgetting a class did: numbers as a table, classes as bars before and after.

    Args:
        method: How it was forgotten.
        seconds: How long that took.
        numbers: UA, RA, TA and MIA under "before" and "after", per cent.
        classes: Name, accuracy before and after, 0..1.
    """
    rows = ""
    for key, text in _MEASURES.items():
        cells = "".join(f"<td>{numbers[when][key]:.1f} %</td>" for when in ("before", "after"))
        rows += f"<tr><td>{text}</td>{cells}</tr>"
    shown = classes[:12]
    cells = "".join(
        f'<span>{html.escape(n)}</span><span><i class="kept" style="width:{100 * b:.0f}%"></i>'
        f'<i style="width:{100 * a:.0f}%"></i></span><span>{b:.0%} to {a:.0%}</span>'
        for n, b, a in shown
    )
    more = f" (the first {len(shown)} of {len(classes)})" if len(shown) < len(classes) else ""
    return (
        f"<p><b>{html.escape(method)}</b>: {1000 * seconds:.0f} ms</p>"
        f'<table class="facts"><tr><th></th><th>before</th><th>after</th></tr>{rows}</table>'
        f"<p>Test samples recognised, class by class{more}, before (grey) and after:</p>"
        f'<div class="bars">{cells}</div>'
    )


def report_html(name: str, text: str) -> str:
    """A report in a frame: no script of it runs, and it cannot reach the page around it.

    >>> report_html("a", "<b>")
    '<iframe title="report a" sandbox="" class="report" srcdoc="&lt;b&gt;"></iframe>'
    """
    title, inside = html.escape(name), html.escape(text, quote=True)
    return f'<iframe title="report {title}" sandbox="" class="report" srcdoc="{inside}"></iframe>'
