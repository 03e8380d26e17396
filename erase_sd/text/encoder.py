"""All text encoders of a model: prompts to feature rows and their moments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.models.architectures import POOLED, TOKENS, Architecture, Stream, by_name, identify
from erase_sd.models.checkpoint import Checkpoint, DiffusersFolder
from erase_sd.models.single_file import SingleFile
from erase_sd.text.fingerprint import fingerprint
from erase_sd.text.gathering import Gathering
from erase_sd.text.openclip import single_file_towers
from erase_sd.text.tokens import PromptStates, Segment
from erase_sd.text.towers import LoadedTower


class TextEncoder(Gathering):
    """All text encoders of a pipeline, as its denoiser sees them.

    Attributes:
        architecture: Whose text features these are.
        towers: The encoders.
        width: Features of a token, `d`.
        widths: The same for every stream the encoders feed.
        norm: Weight of the norm that the token states pass in the denoiser, if they pass one.
        source: Where it came from, for messages and provenance.

    Raises:
        ValueError: If the architecture has such a norm and its weight is not given.

    Example:
        >>> from erase_sd.pipelines.loading import model_path
        >>> TextEncoder.from_folder(model_path("emoji-sd")).width
        192
    """

    def __init__(
        self,
        architecture: Architecture,
        towers: Sequence[LoadedTower],
        *,
        norm: Tensor | None = None,
        source: str = "",
    ) -> None:
        self.architecture = architecture
        self.towers = list(towers)
        self.norm = None if norm is None else norm.detach().float().cpu()
        self.source = source
        if architecture.norm and norm is None:
            raise ValueError(f"expected the weight of {architecture.norm.name}, got none")
        segments: dict[int, int] = {}
        for tower in self.towers:
            if tower.spec.segment is not None:
                segments[tower.spec.segment] = segments.get(tower.spec.segment, 0) + tower.width
        self.width = max(segments.values())
        self.widths: dict[Stream, int] = {TOKENS: self.width}
        if pooled := sum(tower.pooled_width for tower in self.towers):
            self.widths[POOLED] = pooled

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        architecture: Architecture | None = None,
        *,
        norm: Tensor | None = None,
        variant: str = "",
        device: str = "cpu",
    ) -> TextEncoder:
        """Load only the tokenizers and text encoders of a diffusers folder.

        In float32; language models as they are stored.

        Args:
            folder: With `tokenizer/`, `text_encoder/` and, where the architecture has them, `…_2/`,
                `…_3/`.
            architecture: Default: that of Stable Diffusion 1 and 2.
            norm: Weight of the denoiser's norm of the token states, if the architecture has one.
            variant: Weights variant, such as "fp16".
            device: Where to run them.

        Raises:
            ValueError: If they cannot be loaded.
        """
        architecture = architecture or by_name("sd")
        quiet = logging.getLogger("transformers.modeling_utils")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            towers = [
                LoadedTower.from_folder(Path(folder), t, variant) for t in architecture.towers
            ]
        except Exception as error:  # the library's errors are of many kinds and many lines
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise ValueError(f"cannot load the text encoder of {folder}: {reason}") from error
        finally:
            quiet.setLevel(level)
        for tower in towers:
            tower.model.to(device)
        return cls(architecture, towers, norm=norm, source=str(folder))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, device: str = "cpu") -> TextEncoder:
        """Load the text encoders of a checkpoint, and nothing else of it.

        Raises:
            ValueError: If they cannot be loaded.
        """
        if isinstance(checkpoint, SingleFile):
            checkpoint.check_reads()
            return cls(
                checkpoint.architecture,
                single_file_towers(checkpoint, device),
                source=str(checkpoint.path),
            )
        variant = checkpoint.variant if isinstance(checkpoint, DiffusersFolder) else ""
        return cls.from_folder(
            checkpoint.path,
            checkpoint.architecture,
            norm=checkpoint.norm(),
            variant=variant,
            device=device,
        )

    @classmethod
    def of(cls, pipe: Any) -> TextEncoder:
        """The text encoders of a live diffusers pipeline."""
        unet = getattr(pipe, "unet", None)  # a compiled one has no truth value
        denoiser = pipe.transformer if unet is None else unet
        config = dict(denoiser.config)
        config.setdefault("_class_name", type(denoiser).__name__)
        architecture = identify(config)
        towers = [
            LoadedTower(
                t, getattr(pipe, f"tokenizer{t.suffix}"), getattr(pipe, f"text_encoder{t.suffix}")
            )
            for t in architecture.towers
        ]
        behind = architecture.norm
        norm = denoiser.get_parameter(behind.name) if behind else None
        return cls(architecture, towers, norm=norm, source=getattr(pipe, "name_or_path", ""))

    @property
    def tokenizer(self) -> Any:
        """The first tower's tokenizer, whose vocabulary stands for the encoder's."""
        return self.towers[0].tokenizer

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose states an edit is made to hold for: −1 the last, −2 the one before it.

        The architecture's own comes first; the others are what hosts feed under "CLIP skip".
        """
        spec = self.towers[0].spec
        return (spec.layer, *spec.also)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all weights' names, shapes and values (see `erase_sd.text.fingerprint`)."""
        norm = [] if self.norm is None else [[("norm", self.norm)]]
        return fingerprint([*(tower.tensors for tower in self.towers), *norm])

    def encode(self, prompts: Sequence[str], *, length: int | None = None) -> PromptStates:
        """What the denoiser sees of some prompts; longer ones lose their end, as in the pipeline.

        Args:
            prompts: `n` prompts.
            length: See `LoadedTower.encode`; None computes what the pipeline would.
        """
        parts: dict[int, list[list[Segment]]] = {}
        pooled, cut = [], 0
        for tower in self.towers:
            states, vector, truncated = tower.encode(prompts, length=length)
            cut = max(cut, truncated)
            if tower.spec.segment is not None:
                parts.setdefault(tower.spec.segment, []).append(states)
            if vector is not None:
                pooled.append(vector)
        segments = [self._side_by_side(towers) for _, towers in sorted(parts.items())]
        own, *others = zip(*segments, strict=True)
        names = tuple(prompts)
        return PromptStates(
            names,
            own,
            torch.cat(pooled, dim=1) if pooled else None,
            cut,
            others=tuple(PromptStates(names, layer) for layer in others),
        )

    def _side_by_side(self, towers: Sequence[Sequence[Segment]]) -> list[Segment]:
        """What the denoiser reads of towers whose features stand side by side, layer by layer."""
        return [
            self._normed(replace(group[0], states=torch.cat([s.states for s in group], dim=2)))
            for group in zip(*towers, strict=True)
        ]

    def _normed(self, segment: Segment) -> Segment:
        """As the matrix gets it that reads the text."""
        norm = self.architecture.norm
        if norm is None or self.norm is None:
            return segment
        return replace(segment, states=norm(segment.states, self.norm))
