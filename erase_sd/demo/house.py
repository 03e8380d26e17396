"""What the demo's visitors share, and what belongs to each of them."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from erase_sd.artifact.erasure import Erasure
from erase_sd.demo.studio import Shot, Studio

STAY = 6 * 3600  # seconds that a visit's work is kept
MODELS = 2  # models in memory at once


@dataclass(frozen=True)
class Visit:
    """What belongs to one visitor, and to nobody else.

    Attributes:
        model: Name of the model that the erasures are for.
        stack: Erasures, in the order they were added.
        scale: Times their own strength.
        shots: Pictures that were drawn, with those of the untouched and the erased model.
        before: Pictures of the untouched model.
        after: Those of the erased one.
        own: The visitor's own prompt.
        seed: Seed of the first picture of each prompt.
        brought: Whether an erasure file was added.
        folder: Where the files to take home lie; deleted with the visit.
    """

    model: str = ""
    stack: tuple[Erasure, ...] = ()
    scale: float = 1.0
    shots: tuple[Shot, ...] = ()
    before: tuple[Image.Image, ...] = ()
    after: tuple[Image.Image, ...] = ()
    own: str = ""
    seed: int = 0
    brought: bool = False
    folder: Path | None = None

    def __deepcopy__(self, memo: Any) -> Visit:  # a frozen value
        return self

    @property
    def names(self) -> list[str]:
        """Names of what is erased."""
        return [n for e in self.stack for n in e.names]


@dataclass
class House:
    """What all visitors share.

    Attributes:
        models: Names of the models that may be chosen.
        folder: Temporary folder of this process; visitors' files lie in it.
        any_model: Whether a visitor may name another folder or Hub id.
        device: Where models run.
        reports: Folder of evaluation reports, or None.
    """

    models: Sequence[str]
    folder: Path
    any_model: bool = False
    device: str = "cpu"
    reports: Path | None = None
    _studios: dict[str, Studio] = field(default_factory=dict)

    def studio(self, name: str) -> Studio:
        """The studio of a model, loaded on first use."""
        if name not in self.models and not self.any_model:
            raise ValueError(f"this demo has {', '.join(self.models)}; its operator allows no other model")
        if name not in self._studios:
            while len(self._studios) >= MODELS:  # the one loaded first makes room
                del self._studios[next(iter(self._studios))]
            self._studios[name] = Studio(name, device=self.device)
        return self._studios[name]

    def leave(self, visit: Visit) -> None:
        """Delete what a visitor could have taken home."""
        if visit.folder is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Delete what is left of visits that ended without a word."""
        for path in [*self.folder.glob("*"), *self.folder.glob("gradio/*")]:
            with contextlib.suppress(FileNotFoundError):  # another request may have swept it
                if path.name != "gradio" and time.time() - path.stat().st_mtime > STAY:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def reports_in(folder: Path | None) -> dict[str, Path]:
    """Evaluation pages below a folder, by their relative names; links that lead out of it are left out."""
    if folder is None:
        return {}
    root = folder.resolve()
    found = sorted(p for p in root.glob("**/*.html") if p.is_file() and p.resolve().is_relative_to(root))
    return {str(p.relative_to(root)): p for p in found[:200]}
