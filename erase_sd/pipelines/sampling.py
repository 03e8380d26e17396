"""Images of many prompts at given seeds: the same seed gives the same noise whatever the batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from erase_sd.models.embedded import usual


def usual_guidance(pipe: Any) -> float | None:
    """The guidance scale of a pipeline: its model's usual one, or for transformers its own default.

    Those differ from one to the next, and some take no number at all.
    """
    if getattr(pipe, "transformer", None) is None:
        return usual(Path(pipe.name_or_path or "")).guidance
    default: float | None = (
        inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default
    )
    return default


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 20,
    guidance: float | None = None,
    batch: int = 16,
    progress: str | None = None,
) -> list[Image.Image]:
    """One image for each (prompt, seed).

    Args:
        pipe: A diffusers text-to-image pipeline.
        prompts: `n` prompts.
        seeds: `n` seeds; noise is drawn on the CPU, so devices agree.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; default: what is usual for the model.
        batch: Images at once.
        progress: Label of a progress bar, or None.

    Returns:
        `n` RGB images.

    Raises:
        ValueError: If prompts and seeds are not as many, or a count is below 1.

    Example:
        >>> from erase_sd.pipelines.loading import load_pipeline, model_path
        >>> pipe = load_pipeline(model_path("emoji-sd"))
        >>> [image.size for image in generate(pipe, ["a cat"], [0], steps=2)]
        [(64, 64)]
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"expected as many seeds as prompts, got {len(seeds)} for {len(prompts)}")
    if steps < 1 or batch < 1:
        raise ValueError(f"expected steps and batch of at least 1, got {steps} and {batch}")
    if guidance is None:
        guidance = usual_guidance(pipe)
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    starts: Any = range(0, len(prompts), batch)
    if progress:
        starts = tqdm(starts, desc=progress, unit="batch")
    for start in starts:
        stop = start + batch
        noise = [torch.Generator("cpu").manual_seed(s) for s in seeds[start:stop]]
        images += pipe(
            list(prompts[start:stop]),
            generator=noise,
            num_inference_steps=steps,
            guidance_scale=guidance,
        ).images
    return images
