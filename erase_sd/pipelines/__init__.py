"""The diffusers side: erase from a live pipeline, restore it, generate."""

from __future__ import annotations

import importlib

__all__ = ["EraseStableDiffusionPipeline", "LiveErasure", "apply", "generate", "remove"]

_WHERE = {
    "EraseStableDiffusionPipeline": "erase_sd.pipelines.stable_diffusion",
    "LiveErasure": "erase_sd.pipelines.live",
    "apply": "erase_sd.pipelines.live",
    "generate": "erase_sd.pipelines.sampling",
    "remove": "erase_sd.pipelines.live",
}


def __getattr__(name: str):  # noqa: ANN202
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
