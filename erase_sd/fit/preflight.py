"""Pre-flight: which words an edit would hit, and how much of it a drift budget allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erase_sd.algebra import options as opt
from erase_sd.algebra.certificate import change
from erase_sd.algebra.edit import LowRankEdit
from erase_sd.fit.solve import Settings, fit
from erase_sd.text.background import vocabulary
from erase_sd.text.encoder import TextEncoder


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
            rows.append(states.rows("words+eos"))
            counts.append(states.mask("words+eos").sum(1))
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
    encoder: TextEncoder,
    forget: Sequence[str],
    max_drift: float,
    *,
    retain: Sequence[str] = (),
    weights: Mapping[str, Tensor] | None = None,
    settings: Settings | None = None,
) -> Settings:
    """The largest rank, and then strength up to 1, whose retain drift stays within a budget.

    Args:
        encoder: Text encoder.
        forget: Forget prompts.
        max_drift: Largest root mean square relative change of the retained features.
        retain: Retain prompts.
        weights: Base tensors the edit is for.
        settings: What is fixed; a rank among its options is kept.

    Returns:
        The settings with rank (for methods that have one) and strength chosen.

    Raises:
        ValueError: If the budget is not positive, or the settings do not fit.
    """
    if not max_drift > 0:
        raise ValueError(f"expected --max-drift above 0, got {max_drift}")
    settings = settings or Settings()
    best: Settings | None = None
    open_rank = "rank" in opt.names(settings.spec.options) and "rank" not in settings.options
    for rank in range(1, 11) if open_rank else [None]:
        options = {**settings.options, **({} if rank is None else {"rank": rank})}
        tried = replace(settings, strength=1.0, options=options)
        try:
            concept = fit(encoder, forget, retain=retain, weights=weights, settings=tried).concepts[
                0
            ]
        except ValueError:
            if best is None:
                raise
            break  # the forget prompts span no more directions
        drift = concept.certificate["retain_drift"]
        if drift > max_drift:  # drift is linear in the strength
            return best or replace(tried, strength=max_drift / drift)
        best = tried
    assert best is not None
    return best
