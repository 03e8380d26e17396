"""Which token states of a prompt count: token rules over what text encoders give."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from erase_sd.models.architectures import POOLED, TOKENS, Stream

TOKEN_RULES: dict[str, str] = {
    "all-but-bos": "all that a prompt is written to: words, EOS and, of CLIP, padding; not BOS",
    "balanced": "the same; words and EOS together count as much as all the padding behind them",
    "padding": "what a prompt is written to behind its EOS",
    "words": "the prompt's own tokens",
    "words+eos": "the prompt's own tokens and the EOS that closes them",
    "last-subject": "the prompt's last own token",
    "eos": "the EOS that closes the prompt",
    "all": "all positions that are read, the constant BOS included",
}


GROUPS = {"balanced": ("words+eos", "padding")}  # of rules whose groups of tokens count alike
SINGLE = ("last-subject", "eos")  # rules that pick one state of a prompt


@dataclass(frozen=True, eq=False)
class Segment:
    """One token sequence of some prompts.

    Attributes:
        states: `(n, L, d)` float32 token states.
        first: `(n,)` position of each prompt's first own token.
        lengths: `(n,)` own tokens of each prompt.
        end: `(n,)` position of the token that closes it: EOS, or what a template has there; its
            last own token if nothing closes it.
        written: `(n, L)` bool: positions that a prompt is written to.
        read: `(n, L)` bool: positions that the denoiser reads, what is the same in all lines
            included.
    """

    states: Tensor
    first: Tensor
    lengths: Tensor
    end: Tensor
    written: Tensor
    read: Tensor

    def mask(self, rule: str) -> Tensor:
        """`(n, L)` bool: which positions a token rule picks."""
        if rule not in TOKEN_RULES:
            raise ValueError(f"expected a token rule of {', '.join(TOKEN_RULES)}; got {rule!r}")
        position = torch.arange(self.states.shape[1])[None]
        first, end = self.first[:, None], self.end[:, None]
        behind = first + self.lengths[:, None]
        if rule == "all":
            return self.read
        if rule == "all-but-bos" or rule in GROUPS:
            return self.written
        if rule == "padding":
            return self.written & (position > end)
        if rule == "words":
            return (position >= first) & (position < behind)
        if rule == "words+eos":
            return (position >= first) & (position <= end)
        if rule == "eos":
            return position == end
        # An empty prompt has no subject; its EOS is the nearest thing (the rule `mask.sum() - 2` of
        # other code gives BOS, which every prompt shares).
        return position == torch.where(behind > first, behind - 1, end)

    @property
    def closing(self) -> Tensor:
        """`(n, d)` the EOS states: what the encoder makes of the whole prompt."""
        return self.states[torch.arange(len(self.end)), self.end]

    def at(self, which: slice) -> Segment:
        """The same of some of the prompts."""
        return Segment(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class PromptStates:
    """What the denoiser sees of some prompts.

    Attributes:
        prompts: The `n` prompts.
        segments: Token sequences, one unless encoders of unlike length are chained.
        pooled: `(n, p)` float32 pooled features, or None.
        truncated: How many prompts lost their end.
        others: The same prompts' token states of other layers, which some hosts feed instead.
    """

    prompts: tuple[str, ...]
    segments: tuple[Segment, ...]
    pooled: Tensor | None = None
    truncated: int = 0
    others: tuple[PromptStates, ...] = ()

    @property
    def layers(self) -> tuple[PromptStates, ...]:
        """These states and the others: whatever a host may feed."""
        return (self, *self.others)

    @property
    def states(self) -> Tensor:
        """`(n, L, d)` the tokens as the denoiser gets them.

        Narrower segments are padded with zeros.
        """
        return torch.cat([_widen(s.states, self.width) for s in self.segments], dim=1)

    @property
    def width(self) -> int:
        """Features of a token."""
        return max(s.states.shape[2] for s in self.segments)

    def mask(self, rule: str) -> Tensor:
        """`(n, L)` bool: which tokens a rule picks."""
        return torch.cat([s.mask(rule) for s in self.segments], dim=1)

    def rows(self, rule: str, stream: Stream = TOKENS) -> Tensor:
        """`(m, d)` features of a stream, all prompts together; the rule picks tokens."""
        if stream == POOLED:
            if self.pooled is None:
                raise ValueError("this text encoder has no pooled features")
            return self.pooled
        return self.states[self.mask(rule)]

    def every(self, rule: str, stream: Stream = TOKENS) -> list[Tensor]:
        """`(m, d)` features of a stream for each layer that a host may feed; the first is `rows`.

        Skipping a layer leaves the pooled features what they are.
        """
        return [s.rows(rule, stream) for s in (self.layers if stream == TOKENS else (self,))]

    def one(self, index: int) -> PromptStates:
        """The same of one prompt."""
        at = slice(index, index + 1)
        segments = tuple(s.at(at) for s in self.segments)
        pooled = None if self.pooled is None else self.pooled[at]
        others = tuple(other.one(index) for other in self.others)
        return PromptStates(self.prompts[at], segments, pooled, others=others)

    def means(self, rule: str) -> Tensor:
        """`(n, d)` the mean of each prompt's token states that a rule picks."""
        mask = self.mask(rule)[..., None].to(self.states.dtype)
        return (self.states * mask).sum(1) / mask.sum(1).clamp(min=1)

    @property
    def meanings(self) -> Tensor:
        """`(n, p or d)` one vector for each prompt: the pooled one, or the EOS state."""
        return self.pooled if self.pooled is not None else self.segments[0].closing


def _widen(states: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, width - states.shape[-1]))
