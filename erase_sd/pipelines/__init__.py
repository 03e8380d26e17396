"""The diffusers side: erase from a live pipeline, restore it, generate."""

from __future__ import annotations

from erase_sd._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "EraseStableDiffusionPipeline": "erase_sd.pipelines.stable_diffusion",
        "LiveErasure": "erase_sd.pipelines.live",
        "apply_to_pipeline": "erase_sd.pipelines.live",
        "erase_from_pipeline": "erase_sd.pipelines.erasing",
        "generate": "erase_sd.pipelines.sampling",
        "restore_pipeline": "erase_sd.pipelines.live",
    },
)
