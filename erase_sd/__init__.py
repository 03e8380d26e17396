"""erase-sd: take a concept out of a text-to-image model, exactly and reversibly.

Without training.
"""

from __future__ import annotations

from erase_sd._lazy import lazy
from erase_sd._version import __version__

_WHERE = {
    "METHODS": "erase_sd.algebra.methods",
    "EraseStableDiffusionPipeline": "erase_sd.pipelines.stable_diffusion",
    "Erasure": "erase_sd.artifact.erasure",
    "LowRankEdit": "erase_sd.algebra.edit",
    "Run": "erase_sd.operations.common",
    "SecondMoment": "erase_sd.algebra.moments",
    "Settings": "erase_sd.fit.solve",
    "TextEncoder": "erase_sd.text.encoder",
    "apply": "erase_sd.operations.applying",
    "erase": "erase_sd.operations.erasing",
    "export": "erase_sd.operations.exporting",
    "preflight": "erase_sd.operations.looking",
    "restore": "erase_sd.operations.restoring",
    "verify": "erase_sd.operations.verifying",
}

__getattr__, __dir__, _names = lazy(__name__, _WHERE)
__all__ = [*_names, "__version__"]  # noqa: PLE0604
