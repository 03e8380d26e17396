"""Pre-flight: what an erasure would hit, in seconds, without an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.report import concept_lines
from erase_sd.fit.preflight import Words, budget
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.checkpoint import Checkpoint
from erase_sd.models.embedded import EMBEDDED
from erase_sd.models.files import atomic_path
from erase_sd.operations.common import Run, open_model
from erase_sd.prompts import clean
from erase_sd.text.encoder import TextEncoder


@dataclass(frozen=True, eq=False)
class Preflight:
    """What an erasure would do.

    Attributes:
        erasure: The erasure, which nothing was done with.
        words: The vocabulary's words and the relative change of their states, most first.
    """

    erasure: Erasure
    words: tuple[tuple[str, float], ...]

    @property
    def concept(self) -> ErasedConcept:
        """What would be erased."""
        return self.erasure.concepts[0]

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "concept": self.concept.name,
            "method": self.concept.method,
            "options": self.concept.options,
            "strength": self.concept.strength,
            "certificate": self.concept.certificate,
            "words_hit": [{"word": w, "change": round(c, 4)} for w, c in self.words[:20]],
        }

    def lines(self) -> list[str]:
        """For people."""
        spectrum = " ".join(f"{v:.1%}" for v in self.concept.certificate["spectrum"][:6])
        return [
            *concept_lines(self.concept),
            f"  spectrum of the forget features: {spectrum}",
            "  words moved most: " + ", ".join(f"{w} {c:.0%}" for w, c in self.words[:12]),
        ]

    def plot(self, path: Path, *, force: bool = False) -> None:
        """Write a PNG: the spectrum on the left, the words moved most on the right."""
        from matplotlib.figure import Figure  # noqa: PLC0415 - a second that most runs do without

        figure = Figure(figsize=(10, 4))
        left, right = figure.subplots(1, 2)
        spectrum = self.concept.certificate["spectrum"]
        left.bar(range(1, len(spectrum) + 1), spectrum, color="#b00020")
        left.set(
            xlabel="direction",
            ylabel="share of energy",
            title=f"forget features of {self.concept.name!r}",
        )
        words = self.words[:20][::-1]
        right.barh([w for w, _ in words], [c for _, c in words], color="#37474f")
        right.set(xlabel="relative change of the word's states", title="words moved most")
        figure.tight_layout()
        with atomic_path(path, force=force) as draft:
            figure.savefig(draft, format="png", dpi=120)


def preflight(
    model: str | Path | Checkpoint = EMBEDDED,
    forget: str | Sequence[str] = (),
    *,
    retain: str | Sequence[str] = (),
    name: str | None = None,
    settings: Settings | None = None,
    max_drift: float | None = None,
    run: Run | None = None,
) -> Preflight:
    """Solve and measure; write nothing.

    Args:
        model: As for `erase`, on disk.
        forget: Prompts that mean the concept.
        retain: Prompts to keep.
        name: Name of the concept.
        settings: How.
        max_drift: Find the largest rank and strength whose retain drift stays below it.
        run: How to run.

    Raises:
        ValueError: On any unusable input.

    Example:
        >>> seen = preflight("emoji-sd", ["cat"])
        >>> seen.erasure.names
        ('cat',)
    """
    run, settings = run or Run(), settings or Settings()
    forget = clean([forget] if isinstance(forget, str) else forget)
    retain = clean([retain] if isinstance(retain, str) else retain)
    if max_drift is not None and settings.strength is not None:
        raise ValueError("--max-drift finds the strength itself; leave --strength out")
    if max_drift is not None and settings.robust:
        raise ValueError(
            "--robust goes as far as it must, --max-drift only as far as it may; choose one"
        )
    checkpoint = open_model(model, run.source)
    encoder = TextEncoder.from_checkpoint(checkpoint, device=run.device)
    weights = checkpoint.weights(kinds=settings.spec.kinds)
    if max_drift is not None:
        settings = budget(
            encoder, forget, max_drift, retain=retain, weights=weights, settings=settings
        )
    erasure = fit(encoder, forget, retain=retain, name=name, weights=weights, settings=settings)
    concept = erasure.concepts[0]
    hit = Words.of(encoder).hit(erasure.edit.scaled(concept.strength), exclude=forget)
    return Preflight(erasure, tuple(hit))
