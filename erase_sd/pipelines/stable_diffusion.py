"""EraseStableDiffusionPipeline: a Stable Diffusion pipeline that can forget."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import StableDiffusionPipeline

from erase_sd.artifact.erasure import Erasure
from erase_sd.fit.solve import Settings
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

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        """What is erased right now."""
        return LiveErasure.of(self).erasures
