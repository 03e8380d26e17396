"""Erase from a live pipeline of any supported architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erase_sd.artifact.erasure import Erasure
from erase_sd.fit.solve import Settings, fit
from erase_sd.pipelines.live import LiveErasure, apply_to_pipeline
from erase_sd.text.encoder import TextEncoder


def erase_from_pipeline(
    pipe: Any,
    forget: str | Sequence[str] | Erasure,
    *,
    retain: str | Sequence[str] = (),
    name: str | None = None,
    settings: Settings | None = None,
    allow_other_base: bool = False,
) -> Erasure:
    """Erase a concept from the loaded weights; call again to erase another one as well.

    Args:
        pipe: A diffusers pipeline with its text encoders.
        forget: Prompts that mean the concept, or a ready `Erasure`.
        retain: Prompts to keep besides the method's own protection.
        name: Name of the concept; default: its first prompt.
        settings: How; default: the default method as it is.
        allow_other_base: Apply a ready erasure to other base weights.

    Returns:
        The erasure, ready to be saved or subtracted.

    Raises:
        ValueError: On any unusable input; the pipeline is then as it was.

    Example:
        >>> from erase_sd.pipelines.loading import load_pipeline, model_path
        >>> pipe = load_pipeline(model_path("emoji-sd"))
        >>> erase_from_pipeline(pipe, "cat", retain=["tiger"]).names
        ('cat',)
    """
    live = LiveErasure.of(pipe)
    if isinstance(forget, Erasure):
        apply_to_pipeline(pipe, forget, allow_other_base=allow_other_base)
        return forget
    erasure = fit(
        TextEncoder.of(pipe),
        [forget] if isinstance(forget, str) else list(forget),
        retain=[retain] if isinstance(retain, str) else list(retain),
        name=name,
        weights=live.originals(),
        settings=settings,
    )
    live.add(erasure, allow_other_base=True)  # made of these very weights
    return erasure
