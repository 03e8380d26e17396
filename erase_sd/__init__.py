"""erase-sd: take a concept out of a text-to-image model, exactly and reversibly, without training."""

from __future__ import annotations

import importlib
from typing import Any

from erase_sd._version import __version__

__all__ = [
    "METHODS",
    "DiffusersFolder",
    "EraseStableDiffusionPipeline",
    "Erasure",
    "LowRankEdit",
    "SecondMoment",
    "TextEncoder",
    "__version__",
    "apply",
    "fit",
    "remove",
    "save_lora",
]

_WHERE = {
    "METHODS": "erase_sd.methods",
    "DiffusersFolder": "erase_sd.checkpoints",
    "EraseStableDiffusionPipeline": "erase_sd.pipelines.stable_diffusion",
    "Erasure": "erase_sd.erasure",
    "LowRankEdit": "erase_sd.edit",
    "SecondMoment": "erase_sd.moments",
    "TextEncoder": "erase_sd.text",
    "apply": "erase_sd.pipelines.live",
    "fit": "erase_sd.fitting",
    "remove": "erase_sd.pipelines.live",
    "save_lora": "erase_sd.lora",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562): `import erase_sd` alone imports no torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'erase_sd' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
