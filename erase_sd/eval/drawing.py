"""One picture of a model: images of some prompts, as a grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from erase_sd.artifact.erasure import Erasure
from erase_sd.eval.sheet import image_grid
from erase_sd.models.files import atomic_path
from erase_sd.pipelines.live import apply_to_pipeline
from erase_sd.pipelines.sampling import generate

_COLUMNS = 8


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        prompts: Each of them.
        count: Images of each; seeds count up.
        seed: The first.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale.

    Raises:
        ValueError: If a count is below 1, or there are no prompts.
    """

    prompts: tuple[str, ...]
    count: int = 1
    seed: int = 0
    steps: int = 20
    guidance: float = 7.5

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1 or not self.prompts:
            told = f"{len(self.prompts)}, {self.count} and {self.steps}"
            raise ValueError(f"expected prompts, --count and --steps of at least 1, got {told}")

    @property
    def seeds(self) -> list[int]:
        """Of one prompt's images."""
        return [self.seed + i for i in range(self.count)]


def picture(
    pipe: Any, request: Request, *, erasure: Erasure | None = None, scale: float = 1.0
) -> Image.Image:
    """Draw what was asked for: one image, or a grid with a prompt's images in a row.

    Args:
        pipe: A pipeline; the erasure stays applied to it.
        request: What to draw.
        erasure: Applied first.
        scale: What multiplies its change: 0 is the original, 1 as made.

    Raises:
        WrongBase: If the erasure is another base's.
    """
    if erasure is not None:
        apply_to_pipeline(pipe, erasure.scaled(scale))
    prompts = [p for p in request.prompts for _ in range(request.count)]
    seeds = request.seeds * len(request.prompts)
    images = generate(
        pipe,
        prompts,
        seeds,
        progress="images",
        steps=request.steps,
        guidance=request.guidance,
    )
    if len(images) == 1:
        return images[0]
    columns = min(request.count, _COLUMNS) if request.count > 1 else _COLUMNS
    return image_grid(images, columns, cell=images[0].width)


def write_picture(image: Image.Image, path: Path, *, force: bool = False) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        FileExistsError: If it is there and `force` is off.
    """
    with atomic_path(path, force=force) as draft:
        image.save(draft, format="PNG")
