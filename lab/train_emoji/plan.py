"""How long and how hard each network of the embedded model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# In the order of a training. A stage's place here seeds its noise: new ones go to the end.
STAGES = ("scenes", "vae", "clip", "judge", "latents", "unet", "vision", "export", "judge2")
USUAL = STAGES[:-1]  # the second judge is the laboratory's alone
TRAINED = ("vae", "clip", "judge", "unet", "vision", "judge2")  # a continuation keeps the others
CONTINUED = ("scenes", "latents", "unet", "vision", "export")


@dataclass(frozen=True)
class Plan:
    """How long and how hard one network is trained."""

    steps: int
    batch: int
    lr: float


# pairs: share of two-object scenes; attributes: how often the generator's captions name the artist,
# and the background likewise; floor: added to the generator's loss weights, so pure noise counts.
PLANS: dict[str, dict[str, Any]] = {
    "cpu": {
        "scenes": 40_000,
        "pairs": 0.3,
        "attributes": 0.6,
        "floor": 0.1,
        "vae": Plan(1_900, 32, 8e-4),
        "clip": Plan(1_300, 128, 1e-3),
        "vision": Plan(800, 128, 1e-3),
        "judge": Plan(3_000, 64, 2e-3),
        "judge2": Plan(4_000, 48, 2e-3),
        "unet": Plan(5_000, 64, 6e-4),
    },
    # More of the generator and the image tower, from weights that exist (`--init`); the rest stays.
    "cpu-continue": {
        "scenes": 60_000,
        "pairs": 0.45,
        "attributes": 0.8,
        "floor": 0.3,
        "unet": Plan(15_000, 64, 5e-4),
        "vision": Plan(1_200, 128, 5e-4),
    },
    # The second generation: more of what the first one drew worst, by its judge and by eye.
    "cpu-second": {
        "scenes": 80_000,
        "pairs": 0.45,
        "attributes": 0.85,
        "floor": 0.3,
        "emphasis": 1.0,
        "schedule": "trapezoid",
        "unet": Plan(9_000, 64, 4e-4),
    },
    "cuda-continue": {
        "scenes": 100_000,
        "pairs": 0.45,
        "attributes": 0.8,
        "floor": 0.3,
        "unet": Plan(15_000, 256, 5e-4),
        "vision": Plan(2_000, 512, 5e-4),
    },
    "cuda": {
        "scenes": 100_000,
        "pairs": 0.45,
        "attributes": 0.8,
        "floor": 0.3,
        "vae": Plan(8_000, 128, 8e-4),
        "clip": Plan(4_000, 512, 1e-3),
        "vision": Plan(2_000, 512, 5e-4),
        "judge": Plan(4_000, 256, 2e-3),
        "judge2": Plan(4_000, 256, 2e-3),
        "unet": Plan(20_000, 256, 6e-4),
    },
    "smoke": {
        "scenes": 64,
        "pairs": 0.3,
        "attributes": 0.6,
        "floor": 0.3,
        "vae": Plan(2, 4, 1e-3),
        "clip": Plan(2, 4, 1e-3),
        "vision": Plan(2, 4, 1e-3),
        "judge": Plan(2, 4, 1e-3),
        "judge2": Plan(2, 4, 1e-3),
        "unet": Plan(2, 4, 1e-3),
    },
}


def stage_id(stage: str) -> int:
    """A number for a stage, stable between runs (Python's string hash is not).

    >>> stage_id("unet")
    5
    """
    return STAGES.index(stage)
