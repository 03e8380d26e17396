"""Models that lie in this package, known to everything else by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = "emoji-sd"


@dataclass(frozen=True)
class Usual:
    """What is usual for a model where nobody asks for anything else.

    Attributes:
        guidance: Classifier-free guidance scale.
        images: Pictures of each subject before and after an erasure.
        judge: Name of the detector (`erase_sd.eval.detectors.DETECTORS`) that knows its world; None
            if there is none.
    """

    guidance: float = 7.5
    images: int = 0
    judge: str | None = None


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that lies in this package.

    Attributes:
        folder: Within the package.
        usual: What is usual for it.
    """

    folder: str
    usual: Usual

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(__file__).parent.parent / self.folder


EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = {
    EMBEDDED: EmbeddedModel("emoji/weights/emoji-sd", Usual(guidance=3.0, images=8, judge="judge")),
}


def usual(path: Path) -> Usual:
    """What is usual for the model at a path.

    >>> usual(EMBEDDED_MODELS["emoji-sd"].path).judge
    'judge'
    >>> usual(Path("stable-diffusion-v1-4")).guidance
    7.5
    """
    here = path.resolve()
    known = (m.usual for m in EMBEDDED_MODELS.values() if m.path.resolve() == here)
    return next(known, Usual())
