"""Pictures before and after an erasure, and what a detector counts in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from erase_sd.artifact.erasure import Erasure
from erase_sd.eval.before_after import Drawing, compare, subjects_for
from erase_sd.models.checkpoint import Checkpoint
from erase_sd.models.embedded import usual
from erase_sd.operations.common import Run
from erase_sd.pipelines.live import apply_to_pipeline
from erase_sd.pipelines.loading import load_pipeline


@dataclass(frozen=True)
class Pictures:
    """How many pictures to draw, and how.

    Attributes:
        count: Images per subject before and after; None: as many as the model's own detector
            deserves.
        steps: Denoising steps.
    """

    count: int | None = None
    steps: int = 20

    def __post_init__(self) -> None:
        if self.count is not None and not 0 <= self.count <= 1000:
            raise ValueError(f"expected --images between 0 and 1000, got {self.count}")
        if not 1 <= self.steps <= 10_000:
            raise ValueError(f"expected --steps of at least 1, got {self.steps}")


def wanted(checkpoint: Checkpoint, pictures: Pictures | None) -> int:
    """How many images per subject to draw."""
    if pictures is None:
        return 0
    if pictures.count is not None:
        return pictures.count
    return usual(checkpoint.path).images


def draw(
    checkpoint: Checkpoint, erasure: Erasure, forget: Sequence[str], pictures: Pictures, run: Run
) -> tuple[dict[str, Any], Image.Image]:
    """Scores, JSON-ready, and the sheet."""
    pipe = load_pipeline(checkpoint, variant=run.source.variant, device=run.device)
    known = usual(checkpoint.path)
    return compare(
        pipe,
        subjects_for(forget),
        lambda: apply_to_pipeline(pipe, erasure, allow_other_base=True),
        judge=known.judge,
        drawing=Drawing(wanted(checkpoint, pictures), pictures.steps, known.guidance),
        title=f"without {erasure.concepts[0].name}: {erasure.concepts[0].method}",
    )


def score_lines(scores: Mapping[str, Any]) -> list[str]:
    """A detector's counts for people."""
    lines = []
    for key, verb in (("forget", "to forget"), ("retain", "to keep  ")):
        if key in scores:
            before, after = scores[key]["before"], scores[key]["after"]
            lines.append(f"{verb}: judge finds it in {before:.0%} before, {after:.0%} after")
    if "forget" not in scores:
        lines.append(
            "to forget: nothing that a detector here knows, so nothing is counted; see the picture"
        )
    return lines
