"""EraseStableDiffusionPipeline: a Stable Diffusion pipeline that can forget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import StableDiffusionPipeline

from erase_sd.erasure import Erasure
from erase_sd.fitting import fit
from erase_sd.pipelines.live import LiveErasure, apply
from erase_sd.text import TextEncoder


class EraseStableDiffusionPipeline(StableDiffusionPipeline):
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
        allow_other_base: bool = False,
        **options: Any,
    ) -> Erasure:
        """Erase a concept from the loaded weights; call again to erase another one as well.

        Args:
            forget: Prompts that mean the concept, or a ready `Erasure`.
            retain: Prompts to keep besides the method's own protection.
            allow_other_base: Apply a ready erasure to other base weights.
            **options: As for `erase_sd.fit`: `method`, `strength`, `toward`, `tokens`, …

        Returns:
            The erasure, ready to be saved or subtracted.
        """
        live = LiveErasure.of(self)
        made_here = not isinstance(forget, Erasure)
        if not isinstance(forget, Erasure):
            encoder = TextEncoder.of(self)
            forget = fit(
                encoder,
                [forget] if isinstance(forget, str) else list(forget),
                retain=[retain] if isinstance(retain, str) else list(retain),
                weights=live.originals(),
                **options,
            )
        apply(self, forget, allow_other_base=allow_other_base or made_here)
        return forget

    def restore(self, erasure: Erasure | None = None) -> None:
        """Take one erasure, or all, out again; the weights return bit for bit."""
        LiveErasure.of(self).take(erasure)

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        """What is erased right now."""
        return tuple(LiveErasure.of(self).erasures)
