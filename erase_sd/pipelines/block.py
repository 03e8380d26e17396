"""An erasure as a block of diffusers' modular pipelines: between the text encoder and the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from torch import Tensor, nn

from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.erasure import Erasure
from erase_sd.models.architectures import POOLED, TOKENS, Stream
from erase_sd.pipelines.networks import denoisers_of, kind_of

# The states that a text encoder's block leaves, in every family that has them.
STATES: dict[str, Stream] = {
    "prompt_embeds": TOKENS,
    "negative_prompt_embeds": TOKENS,
    "pooled_prompt_embeds": POOLED,
    "negative_pooled_prompt_embeds": POOLED,
}


class EraseBlock(ModularPipelineBlocks):  # type: ignore[misc]
    """Edits text states once, right after they are made: no weight, no hook, no work per step.

    Put it behind the text encoder's block, `blocks.sub_blocks.insert("erase", block, 1)`. It sees
    no weights, so it checks the kind of model and the width of its text alone.

    Args:
        erasure: What to erase: an erasure, its file, or a Hub id.
        scale: What multiplies the change: 0 is off, 1 as made.

    Raises:
        ValueError: If there is no erasure, or one that is more than an edit of text states: made
            with a left side, for values alone, or for a model that norms its text first. Those
            are for `ErasureHook`.
    """

    def __init__(self, erasure: Erasure | str | Path | None = None, scale: float = 1.0) -> None:
        super().__init__()
        if erasure is None:
            raise ValueError("expected erasure=: an erasure, its file or a Hub id; got none")
        made = erasure if isinstance(erasure, Erasure) else Erasure.from_pretrained(erasure)
        self.erasure = made.scaled(scale)
        reasons = {
            "a left side": bool(self.erasure.left),
            "values alone": self.erasure.kinds != "kv",
            "a norm before the matrix": self.erasure.model.norm is not None,
        }
        more = [reason for reason, holds in reasons.items() if holds]
        if more:
            raise ValueError(
                f"expected an edit of text states, got one with {' and '.join(more)}: "
                "use ErasureHook"
            )

    @property
    def description(self) -> str:
        """For the pipeline's own account of itself."""
        return f"Takes {', '.join(self.erasure.names)} out of the prompts' states."

    @property
    def inputs(self) -> list[InputParam]:
        """The text states; they take their own places again."""
        kind = "denoiser_input_fields"
        return [
            InputParam(n, kwargs_type=kind, required=n == "prompt_embeds", type_hint=Tensor)
            for n in STATES
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Edit the states that are there.

        Raises:
            ValueError: If there are none yet.
            WrongBase: If the model is of another kind.
        """
        self._check(components)
        block_state = self.get_block_state(state)
        for name, stream in STATES.items():
            given = getattr(block_state, name)
            if given is not None and stream in self.erasure.right:
                setattr(block_state, name, self._edited(given, stream))
        self.set_block_state(state, block_state)
        return components, state

    def _check(self, components: Any) -> None:
        networks = denoisers_of(components)
        if not all(isinstance(n, nn.Module) for n in networks.values()):  # not loaded, or elsewhere
            return
        found = kind_of(networks).name
        if found != self.erasure.architecture:
            raise WrongBase(
                f"this erasure is for {self.erasure.architecture}, the model is {found}"
            )

    def _edited(self, given: Tensor, stream: Stream) -> Tensor:
        edit = self.erasure.right[stream]
        if given.shape[-1] != edit.width:
            raise WrongBase(
                f"this erasure is for text features of width {edit.width}, the model has "
                f"{given.shape[-1]}"
            )
        return edit.scaled(self.erasure.scale).apply_to_features(given)
