"""What is gathered of many prompts: their states in batches, their moments, their subjects."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erase_sd.algebra.moments import SecondMoment, evenly
from erase_sd.models.architectures import TOKENS, Stream
from erase_sd.text.tokens import GROUPS, PromptStates
from erase_sd.text.towers import LoadedTower

logger = logging.getLogger("erase_sd")

_BATCH_ELEMENTS = 1 << 18  # token features in one batch


class Gathering(ABC):
    """Whatever encodes a few prompts at a time, made to gather the features of many.

    Attributes:
        towers: The encoders.
        width: Features of a token, `d`.
        widths: The same for every stream that they feed.
    """

    towers: list[LoadedTower]
    width: int
    widths: dict[Stream, int]

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """The layers whose states are gathered."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], *, length: int | None = None) -> PromptStates:
        """What the denoiser gets of some prompts."""

    def stream(
        self, prompts: Sequence[str], *, length: int | None = None, progress: str | None = None
    ) -> Iterator[PromptStates]:
        """Encode in batches, so that memory does not grow with the list.

        Warns of cut prompts once.
        """
        # A few megabytes a layer, whatever the encoder: enough for full speed, little beside its
        # weights.
        positions = max(
            min(length or t.length, t.length) if t.spec.causal else t.length for t in self.towers
        )
        batch = max(1, min(64, _BATCH_ELEMENTS // (max(positions, 8) * self.width)))
        starts: Any = range(0, len(prompts), batch)
        if progress and len(prompts) > 4 * batch:
            starts = tqdm(starts, desc=progress, unit="batch")
        cut = 0
        for start in starts:
            states = self.encode(prompts[start : start + batch], length=length)
            cut += states.truncated
            yield states
        if cut:
            length = min(t.length for t in self.towers)
            logger.warning(
                "%d of %d prompts are longer than %d tokens and were cut", cut, len(prompts), length
            )

    def distinct(self, prompts: Sequence[str]) -> tuple[list[str], list[int]]:
        """Prompts less those that read as another one does, once cut, and where each one is there.

        >>> from erase_sd.emoji.models import EMOJI_SD
        >>> from erase_sd.text.encoder import TextEncoder
        >>> TextEncoder.from_folder(EMOJI_SD).distinct(["cat", "dog", "Cat"])
        (['cat', 'dog'], [0, 1, 0])
        """
        seen: dict[tuple[tuple[int, ...], ...], int] = {}
        kept: list[str] = []
        index: list[int] = []
        # Some thousands at a time: the library's tokens take much more memory than their numbers.
        for start in range(0, len(prompts), 4096):
            chunk = prompts[start : start + 4096]
            read = zip(*(tower.token_ids(chunk) for tower in self.towers), strict=True)
            for prompt, ids in zip(chunk, read, strict=True):
                if ids not in seen:
                    seen[ids] = len(kept)
                    kept.append(prompt)
                index.append(seen[ids])
        return kept, index

    def moments(
        self,
        prompts: Sequence[str],
        rule: str,
        *,
        length: int | None = None,
        progress: str | None = None,
    ) -> dict[Stream, tuple[SecondMoment, ...]]:
        """Second moment of every stream's features over all prompts; the rule picks tokens.

        Each stream has one for every layer that a host may feed, the architecture's own first.
        """
        groups = GROUPS.get(rule, (rule,))
        totals = [self.no_moments() for _ in groups]
        once, index = self.distinct(prompts)
        for times, told in _by_count(once, index).items():
            for states in self.stream(told, length=length, progress=progress):
                totals = [
                    gathered(total, states, group, times)
                    for total, group in zip(totals, groups, strict=True)
                ]
        total = dict(totals[0])
        if len(totals) > 1:
            total[TOKENS] = tuple(map(evenly, *(t[TOKENS] for t in totals)))
        return total

    def no_moments(self) -> dict[Stream, tuple[SecondMoment, ...]]:
        """The moments of no prompts."""
        return {
            stream: (SecondMoment.zeros(width),) * (len(self.layers) if stream == TOKENS else 1)
            for stream, width in self.widths.items()
        }

    def subjects(self, prompts: Sequence[str], rule: str = "last-subject") -> dict[Stream, Tensor]:
        """`(n s, d)` float64 of each stream: one state of each prompt, or pooled vectors.

        `s` is one for each segment and each layer that a host may feed.

        Args:
            prompts: `n` prompts.
            rule: Which state, "last-subject" or "eos".
        """
        rows = {stream: [torch.zeros(0, width)] for stream, width in self.widths.items()}
        # The subject stands before the padding, and a causal encoder's states do not look ahead.
        once, index = self.distinct(prompts)
        for states in self.stream(once, length=1):
            for stream, found in rows.items():
                layers = states.every(rule, stream)
                apart = [r.reshape(len(states.prompts), -1, r.shape[1]) for r in layers]
                found.append(torch.cat(apart, dim=1).flatten(0, 1))
        subjects: dict[Stream, Tensor] = {}
        for stream, found in rows.items():
            each = torch.cat(found).double()
            per = len(each) // max(len(once), 1)  # one in each segment and layer
            subjects[stream] = each.reshape(len(once), per, each.shape[1])[index].flatten(0, 1)
        return subjects


def gathered(
    moments: Mapping[Stream, Sequence[SecondMoment]],
    states: PromptStates,
    rule: str,
    times: int = 1,
    lots: Tensor | None = None,
) -> dict[Stream, tuple[SecondMoment, ...]]:
    """Moments of every stream and layer, some prompts' features added.

    Args:
        moments: So far.
        states: Of the prompts.
        rule: Which tokens count.
        times: How often each prompt does.
        lots: `(n,)` numbers from 0 to 1; by them one state of each prompt is drawn, which counts
            for all of its states.
    """
    found: dict[Stream, tuple[SecondMoment, ...]] = {}
    for stream, own in moments.items():
        layers = states.every(rule, stream)
        weights = None
        if lots is not None and stream == TOKENS:
            weights = states.mask(rule).sum(1)
            drawn = weights.cumsum(0) - weights + (lots * weights).long()
            layers = [rows[drawn] for rows in layers]
        new = [SecondMoment.of(rows, weights) for rows in layers]
        if times > 1:
            new = [m.weighing(times * m.count) if m.count else m for m in new]
        found[stream] = tuple(a + b for a, b in zip(own, new, strict=True))
    return found


def _by_count(once: Sequence[str], index: Sequence[int]) -> dict[int, list[str]]:
    """Prompts by how many times each is meant."""
    groups: dict[int, list[str]] = {}
    for place, times in sorted(Counter(index).items()):
        groups.setdefault(times, []).append(once[place])
    return groups
