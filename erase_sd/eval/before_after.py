"""Generate before and after at equal seeds, and let a detector count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from PIL import Image

from erase_sd._lazy import resolve
from erase_sd.eval.detectors import Detector, DetectorSpec
from erase_sd.eval.metrics import pixel_change
from erase_sd.eval.sheet import Row, before_after_sheet
from erase_sd.pipelines.sampling import generate

SUBJECTS = "erase_sd.emoji.subjects:subjects_for"  # a world of everyday things, in families
_ON_SHEET = 3  # pictures of a subject


class Subject(Protocol):
    """One thing to look at: prompts, what a detector should find in them, whether it should go."""

    @property
    def label(self) -> str:
        """For people."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """What to draw, in turn."""

    @property
    def target(self) -> str | None:
        """Label that a detector should give; None if it knows none."""

    @property
    def forget(self) -> bool:
        """Whether it should go."""


@dataclass(frozen=True)
class Drawing:
    """How the pictures are made.

    Attributes:
        images: Of each subject.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale.
    """

    images: int = 4
    steps: int = 20
    guidance: float = 7.5


def subjects_for(forget: Sequence[str], *, bystanders: int = 8) -> list[Subject]:
    """What to look at when some prompts are forgotten: they, look-alikes, and other things.

    Args:
        forget: What is erased.
        bystanders: How many things that should stay.

    >>> [s.label for s in subjects_for(["cat"], bystanders=2)]
    ['cat', 'dog', 'pizza']
    """
    found: list[Subject] = resolve(SUBJECTS)(forget, bystanders=bystanders)
    return found


def compare(
    pipe: Any,
    subjects: Sequence[Subject],
    apply: Callable[[], object],
    *,
    judge: str | None,
    drawing: Drawing,
    title: str = "",
) -> tuple[dict[str, Any], Image.Image]:
    """Generate every subject before and after `apply()` and count in both.

    Args:
        pipe: The pipeline, unedited.
        subjects: What to draw.
        apply: Edits the pipeline.
        judge: Name of the detector that knows the subjects' targets; None counts nothing.
        drawing: How the pictures are made.
        title: Heading of the sheet.

    Returns:
        JSON-ready scores, and the sheet (three seeds a subject).

    Raises:
        ValueError: If there are no subjects or no images to draw.
    """
    count = drawing.images
    if not subjects or count < 1:
        raise ValueError(f"expected subjects and images, got {len(subjects)} and {count}")
    prompts = [s.prompts[i % len(s.prompts)] for s in subjects for i in range(count)]
    seeds = [i for _ in subjects for i in range(count)]
    draw = partial(generate, pipe, prompts, seeds, steps=drawing.steps, guidance=drawing.guidance)
    before = draw(progress="before")
    apply()
    after = draw(progress="after")
    detector = DetectorSpec(judge).load() if judge else None
    table, rows = [], []
    for i, subject in enumerate(subjects):
        part = slice(i * count, (i + 1) * count)
        table.append(_entry(subject, before[part], after[part], detector))
        group = "to forget" if subject.forget else "to keep"
        shown = tuple(before[part][:_ON_SHEET]), tuple(after[part][:_ON_SHEET])
        rows.append(Row(subject.label, group, *shown))
    scores: dict[str, Any] = {
        "judge": judge,
        "steps": drawing.steps,
        "guidance": drawing.guidance,
        "images": len(prompts),
        "subjects": table,
    }
    for key, wanted in (("forget", True), ("retain", False)):
        counted = [r for r in table if r["forget"] is wanted and "before" in r]
        if counted:
            scores[key] = {k: float(np.mean([r[k] for r in counted])) for k in ("before", "after")}
    return scores, before_after_sheet(rows, title=title)


def _entry(
    subject: Subject,
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    detector: Detector | None,
) -> dict[str, Any]:
    """One subject's numbers: how often it is found, and how much its pictures changed."""
    entry: dict[str, Any] = {
        "subject": subject.label, "forget": subject.forget, "images": len(before)
    }  # fmt: skip
    if subject.target and detector is not None:
        for key, images in (("before", before), ("after", after)):
            found = [subject.target in record["labels"] for record in detector(images)]
            entry[key] = float(np.mean(found))
    pixels = [
        np.stack([np.asarray(i.convert("RGB")) for i in images]) for images in (before, after)
    ]
    entry["pixel_change"] = float(pixel_change(pixels[0], pixels[1]).mean())
    return entry
