"""EraseStableDiffusionPipeline: a Stable Diffusion pipeline that can forget."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.fit.solve import Settings
from erase_sd.models.files import atomic_path
from erase_sd.pipelines.erasing import erase_from_pipeline
from erase_sd.pipelines.live import LiveErasure


class EraseStableDiffusionPipeline(StableDiffusionPipeline):  # type: ignore[misc]
    """`StableDiffusionPipeline` with `erase` and `restore`; everything else is inherited.

    >>> pipe = EraseStableDiffusionPipeline.from_pretrained("path/to/model")  # doctest: +SKIP
    >>> pipe.erase(["cat", "kitten"], retain=["dog"])                         # doctest: +SKIP
    >>> pipe("a photo of a cat").images[0]                                    # doctest: +SKIP
    >>> pipe.restore()                                                        # doctest: +SKIP
    """

    def erase(
        self,
        forget: str | Sequence[str] | Erasure,
        *,
        retain: str | Sequence[str] = (),
        name: str | None = None,
        settings: Settings | None = None,
        allow_other_base: bool = False,
    ) -> Erasure:
        """Erase a concept from the loaded weights.

        See `erase_sd.pipelines.erasing.erase_from_pipeline`.
        """
        return erase_from_pipeline(
            self,
            forget,
            retain=retain,
            name=name,
            settings=settings,
            allow_other_base=allow_other_base,
        )

    def restore(self, erasure: Erasure | None = None) -> None:
        """Take one erasure, or all, out again; the weights return bit for bit."""
        LiveErasure.of(self).take(erasure)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Save a plain Stable Diffusion folder, with what is erased from it beside the weights.

        It appears whole or not at all.

        Args:
            save_directory: Folder to write. One that stands there is replaced if it holds an
                erasure, as everywhere here; diffusers would write into any.
            **options: As diffusers takes them, but for `push_to_hub`.

        Raises:
            FileExistsError: If the folder holds something else.
            ValueError: On `push_to_hub`.
        """
        if options.pop("push_to_hub", False):
            raise ValueError("expected push_to_hub=False: save it, then `hf upload` the folder")
        live = LiveErasure.of(self)
        with atomic_path(Path(save_directory), force=True) as draft:
            super().save_pretrained(draft, **options)
            index = draft / "model_index.json"
            about = json.loads(index.read_text(encoding="utf-8"))
            about["_class_name"] = StableDiffusionPipeline.__name__  # what everybody can load
            files = {index.name: json.dumps(about, indent=2).encode()}
            if live.erasures:
                files |= combine(live.erasures).scaled(live.scale).files()
            for name, content in files.items():
                (draft / name).write_bytes(content)

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        """What is erased right now."""
        return LiveErasure.of(self).erasures
