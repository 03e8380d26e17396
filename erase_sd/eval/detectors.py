"""Detectors: what is in an image, as JSON-ready labels; by name, with a hashed version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from erase_sd._lazy import named

DETECTORS: dict[str, str] = {
    "nudenet": "erase_sd.eval.nudity:NudeNet",
    "judge": "erase_sd.emoji.judge:EmojiJudge",
    "classifier": "erase_sd.eval.classifiers:ImageClassifier",
    "clip": "erase_sd.eval.classifiers:ClipZeroShot",
    "inappropriate": "erase_sd.eval.classifiers:Inappropriate",
}
Labels = dict[str, Any]


class Detector(Protocol):
    """Looks at images.

    Attributes:
        name: As protocols call it.
        about: Everything that moves its answers: versions, thresholds, labels.
    """

    name: str
    about: dict[str, Any]

    def __call__(self, images: Sequence[Image.Image]) -> list[Labels]:
        """One record for each image; `labels` in it is the list of what was found."""
        ...


@dataclass(frozen=True)
class DetectorSpec:
    """A detector as a protocol writes it: its name and options.

    >>> DetectorSpec("nudenet", {"convention": "mace"}).name
    'nudenet'
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Detector:
        """Make it.

        Raises:
            ValueError: On an unknown name or option.
        """
        make = named(DETECTORS, self.name, "detector")
        try:
            made: Detector = make(**self.options)
        except TypeError as error:
            raise ValueError(f"detector {self.name}: {error}") from error
        return made


def open_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Load images fully, so that no file stays open."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images
