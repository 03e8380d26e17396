"""What an erasure says about itself, in words for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erase_sd.artifact.concept import ErasedConcept


def printable(text: str, longest: int = 200) -> str:
    """Text from elsewhere, fit for a terminal or a page: no control characters, not too long."""
    shown = "".join(c if c.isprintable() else "�" for c in text[: longest + 1])
    return shown if len(text) <= longest else shown[:longest] + "…"


def escaped(text: str) -> str:
    """Text from elsewhere as Markdown shows it literally."""
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in plain)


def options_text(options: Mapping[str, Any]) -> str:
    """A method's options on one line."""
    return ", ".join(f"{k} = {printable(str(v), 60)}" for k, v in options.items())


def layers_text(layers: Sequence[int]) -> str:
    """Which layers of the text encoder an erasure holds for, as web UIs count them.

    >>> layers_text((-1, -2))
    'CLIP skip 1 and 2'
    """
    return f"CLIP skip {' and '.join(str(-layer) for layer in layers)}"


def certificate_lines(concept: ErasedConcept) -> list[str]:
    """A concept's certificate for people; its numbers are those at strength 1."""
    certificate, strength, lines = concept.certificate, concept.strength, []
    if "forget_residual" in certificate:
        lines.append(
            f"{1 - certificate['forget_residual']:.1%} of what the forget prompts' states hold is "
            "gone"
        )
    if len(concept.layers) > 1:
        other = certificate.get("other_null_change", 0)
        lines.append(
            f"holds for {layers_text(concept.layers)}, figures are the worse one's; under "
            f"{-concept.layers[-1]} the empty prompt moves {other:.2%}"
        )
    if strength != 1:
        lines.append(
            f"strength {strength:g}: "
            + (
                f"{strength - 1:.0%} more than all of it is taken, on purpose"
                if strength > 1
                else "only that share"
            )
        )
    if "retain_drift" in certificate:
        lines.append(
            f"retained text moves {certificate['retain_drift']:.2%}, the empty prompt "
            f"{certificate.get('null_change', 0):.2%}; largest gain "
            f"{certificate.get('norm', 1):.2f}"
        )
    for prompt, drift in (certificate.get("retain_contradicts") or {}).items():
        lines.append(
            f"{printable(prompt, 60)!r} moves {drift:.1%} all the same: it is too near what is "
            "erased"
        )
    if "unreachable" in certificate:
        lines.append(
            f"{certificate['unreachable']:.0%} of what sets it apart in the values can be written "
            "by no input at all"
        )
    elif "revivable" in certificate:
        lines.append(
            f"a hostile embedding could bring back {certificate['revivable']:.0%}, by linear "
            "estimate; "
            "real attacks may bring back more"
        )
    return lines


def concept_lines(concept: ErasedConcept) -> list[str]:
    """One concept: how it was erased, and its certificate."""
    options = options_text(concept.options)
    head = f"{printable(concept.name)!r} with {printable(concept.method, 60)} ({options})"
    return [head, *("  " + line for line in certificate_lines(concept))]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
