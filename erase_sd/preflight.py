"""Pre-flight: which words an edit would hit, and how much of it a drift budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erase_sd.background import vocabulary
from erase_sd.certify import change
from erase_sd.edit import LowRankEdit
from erase_sd.fitting import fit
from erase_sd.methods import METHODS
from erase_sd.text import TextEncoder


@dataclass(frozen=True, eq=False)
class Words:
    """States of a vocabulary's words, to try edits on.

    Attributes:
        words: The words.
        rows: `(n, d)` states of their own tokens and EOS, word after word.
        counts: How many rows each word has.
    """

    words: tuple[str, ...]
    rows: Tensor
    counts: Tensor

    @classmethod
    def of(cls, encoder: TextEncoder, limit: int = 2000) -> Words:
        """The most frequent words of an encoder's vocabulary."""
        words = tuple(vocabulary(encoder, limit))
        rows, counts = [], []
        for states in encoder.stream(words, length=1):
            mask = states.mask("words+eos")
            rows.append(states.states[mask])
            counts.append(mask.sum(1))
        return cls(words, torch.cat(rows), torch.cat(counts))

    def hit(self, edit: LowRankEdit, *, exclude: Sequence[str] = ()) -> list[tuple[str, float]]:
        """The words by how much an edit moves them, most first.

        Args:
            edit: The edit.
            exclude: Words not to list, e.g. the forget prompts.

        Returns:
            Pairs of a word and the mean relative change `‖T x − x‖ / ‖x‖` of its states.
        """
        skip = {e.lower() for e in exclude}
        mean = [float(part.mean()) for part in change(edit, self.rows).split(self.counts.tolist())]
        moved = [(w, m) for w, m in zip(self.words, mean, strict=True) if w.lower() not in skip]
        return sorted(moved, key=lambda pair: -pair[1])


def budget(
    encoder: TextEncoder, forget: Sequence[str], max_drift: float, *, options: dict[str, Any], **settings: Any
) -> tuple[dict[str, Any], float]:
    """The largest rank, and then strength up to 1, whose retain drift stays within a budget.

    Args:
        encoder: Text encoder.
        forget: Forget prompts.
        max_drift: Largest root mean square relative change of the retained features.
        options: Method options that are fixed.
        **settings: As for `fit`.

    Returns:
        Options to add (the rank, for methods that have one) and the strength.
    """
    if not max_drift > 0:
        raise ValueError(f"expected --max-drift above 0, got {max_drift}")
    method = METHODS[settings["method"]]
    best: tuple[dict[str, Any], float] | None = None
    ranks = range(1, 11) if "rank" in method.options and "rank" not in options else [None]
    for rank in ranks:
        chosen: dict[str, Any] = {} if rank is None else {"rank": rank}
        try:
            part = fit(encoder, forget, strength=1.0, **settings, **options, **chosen).parts[0]
        except ValueError:
            if best is None:
                raise
            break  # the forget prompts span no more directions
        drift = part.certificate["retain_drift"]
        if drift <= max_drift:
            best = chosen, 1.0
        else:  # drift is linear in the strength
            if best is None:
                best = chosen, max_drift / drift
            break
    assert best is not None
    return best
