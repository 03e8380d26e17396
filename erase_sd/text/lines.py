"""Prompts as lines of tokens, as a language model's pipeline writes them.

Around a prompt stands a template. Its tokens are not written down anywhere: they are what the lines
of unlike prompts have in common at either end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor

from erase_sd.models.towers import Tower

# Unlike at both ends, so that nothing but the template is common to them.
_PROBES = ("", "a", "The sea: 7.", "ü", "#")


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines of tokens, padded to one length.

    Attributes:
        ids: `(n, L)` token ids.
        mask: `(n, L)` 1 where a token stands, 0 on padding.
        first: `(n,)` position of each prompt's first own token.
        lengths: `(n,)` own tokens of each prompt.
        end: `(n,)` position of the token that closes it; its last own one if none does.
        cut: How many prompts lost their end.
    """

    ids: Tensor
    mask: Tensor
    first: Tensor
    lengths: Tensor
    end: Tensor
    cut: int = 0

    @property
    def last(self) -> Tensor:
        """`(n,)` position of each line's last token."""
        position = torch.arange(self.mask.shape[1])
        return (position * self.mask).amax(1)


class Writer:
    """Writes prompts as their pipeline does.

    Attributes:
        head: Tokens of the template before a prompt.
        tail: Tokens of it behind.
        instruction: Tokens of a template's words alone, as a tokenizer counts them.
        limit: Most tokens of a line.
    """

    def __init__(self, tokenizer: Any, spec: Tower) -> None:
        self._outer, self.spec = tokenizer, spec
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor holds one
        probes = [self._tokens(p) for p in _PROBES]
        self.head = len(commonprefix(probes))
        self.tail = len(commonprefix([p[self.head :][::-1] for p in probes]))
        before = spec.template.partition("{}")[0] if isinstance(spec.template, str) else ""
        self.instruction = len(self.tokenizer(before).input_ids)
        self.limit = spec.length or self.tokenizer.model_max_length
        if spec.window:
            self.limit = self.instruction + spec.window - 2
        if self.head < spec.dropped:
            raise ValueError(
                f"expected a tokenizer that makes at least {spec.dropped} tokens of the template, "
                f"got {self.head}"
            )

    def _tokens(self, prompt: str) -> list[int]:
        template = self.spec.template
        if isinstance(template, str):
            return list(self.tokenizer(template.replace("{}", prompt)).input_ids)
        chat = getattr(self.tokenizer, "chat_template", None) or self._outer.chat_template
        text = self.tokenizer.apply_chat_template(
            template.messages(prompt), tokenize=False, chat_template=chat, **template.options
        )
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        return list(self.tokenizer(text, add_special_tokens=not begun).input_ids)

    def write(self, prompts: Sequence[str], *, length: int | None = None) -> Lines:
        """The lines of some prompts.

        Args:
            prompts: `n` prompts.
            length: Room for the prompts and what closes them, more if they need it; None for what
                the pipeline takes.
        """
        whole = [self._tokens(p) for p in prompts]
        kept = [line[: self.limit] for line in whole]
        room = max(map(len, kept), default=1)
        if self.spec.padding == "read":
            room = self.limit if length is None else min(self.limit, max(room, self.head + length))
        left = self.spec.padding == "read" and self.tokenizer.padding_side == "left"
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(kept), room), self.tokenizer.eos_token_id if pad is None else pad)
        mask = torch.zeros(len(kept), room, dtype=torch.long)
        for row, line in enumerate(kept):
            at = slice(room - len(line), room) if left else slice(0, len(line))
            ids[row, at] = torch.tensor(line)
            mask[row, at] = 1
        totals = torch.tensor([len(line) for line in kept])
        own = [min(len(w) - self.tail, self.limit) - self.head for w in whole]
        lengths = torch.tensor(own).clamp(min=0)
        first = (room - totals if left else torch.zeros_like(totals)) + self.head
        end = (first + lengths - (0 if self.tail else 1)).clamp(max=room - 1)
        cut = sum(len(w) > self.limit for w in whole)
        return Lines(ids, mask, first.clamp(max=room - 1), lengths, end.clamp(min=0), cut)
