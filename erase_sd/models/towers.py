"""How a prompt reaches a network: text encoders, and the norm behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from erase_sd.models.templates import Chat


@dataclass(frozen=True)
class Tower:
    """One text encoder of an architecture.

    Attributes:
        suffix: It lies in `text_encoder{suffix}/` and `tokenizer{suffix}/`.
        kind: "clip", "t5", "umt5", or "llm" for a language model that only looks back.
        layer: −1 for the last hidden state (after the final norm), −2 for the one before the last
            layer.
        also: Further layers, counted the same, whose states (after the final norm) hosts feed in
            place of these when their user asks for it ("CLIP skip"): an edit must hold for all.
        taps: Hidden states that are concatenated along features instead of `layer`; 0 is what the
            first layer reads.
        segment: Which token sequence its states belong to; towers of one segment are concatenated
            along features, segments along tokens. None if the denoiser does not read its tokens.
        pooled: Name of the output that goes into the pooled stream, or "".
        length: Tokens a prompt is padded to; None for the encoder's own 77. For a language model
            the most that it reads, its template included.
        masked: Whether padding is hidden from the encoder.
        padding: What the denoiser reads of the padding: all of it, its "first" position, or none.
        template: What stands around a prompt that a language model reads.
        dropped: Tokens of the template that the denoiser is not given.
        window: The denoiser is given the line's first token and the `window − 1` from the last one
            of the template on; 0 for the whole line.
        lowercase: Whether the pipeline takes a prompt in small letters.
    """

    suffix: str = ""
    kind: Literal["clip", "t5", "umt5", "llm"] = "clip"
    layer: int = -1
    also: tuple[int, ...] = ()
    taps: tuple[int, ...] = ()
    segment: int | None = 0
    pooled: str = ""
    length: int | None = None
    masked: bool = False
    padding: Literal["read", "first", "ignored"] = "read"
    template: str | Chat = "{}"
    dropped: int = 0
    window: int = 0
    lowercase: bool = False

    @property
    def causal(self) -> bool:
        """Whether a state depends on nothing that comes later in the line."""
        return self.kind in ("clip", "llm")


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm between the text features and the matrix that reads them.

    Attributes:
        name: Tensor of its weight in the denoiser, by its diffusers name.
        epsilon: Added to the mean square.
    """

    name: str
    epsilon: float

    def __call__(self, states: Tensor, weight: Tensor) -> Tensor:
        """`x / √(mean x² + ε) · weight` of each state, `(…, d)`.

        >>> import torch
        >>> Norm("txt_norm.weight", 0.0)(torch.tensor([3.0, 4.0]), torch.ones(2)).square().mean()
        tensor(1.)
        """
        size = states.square().mean(-1, keepdim=True) + self.epsilon
        return states * size.rsqrt() * weight.to(states)
