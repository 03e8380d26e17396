"""Pre-flight: which words an edit would hit, and how much of it a drift budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erase_sd.background import vocabulary
from erase_sd.certify import change
from erase_sd.edit import LowRankEdit
from erase_sd.fitting import fit
from erase_sd.methods import METHODS
from erase_sd.text import TextEncoder


def words_hit(
    encoder: TextEncoder, edit: LowRankEdit, *, exclude: Sequence[str] = (), limit: int = 2000
) -> list[tuple[str, float]]:
    """The vocabulary's words by how much an edit moves them, most first.

    Args:
        encoder: Text encoder.
        edit: The edit.
        exclude: Words not to list, e.g. the forget prompts.
        limit: How many of the most frequent words to try.

    Returns:
        Pairs of a word and the relative change `‖T x − x‖ / ‖x‖` of its own and EOS states.
    """
    skip = {e.lower() for e in exclude}
    words = [w for w in vocabulary(encoder, limit) if w.lower() not in skip]
    moved: list[tuple[str, float]] = []
    for states in encoder.stream(words):
        mask = states.mask("words+eos")
        changed = torch.zeros(mask.shape, dtype=torch.float64)
        changed[mask] = change(edit, states.states[mask])
        mean = changed.sum(1) / mask.sum(1)
        moved += zip(states.prompts, mean.tolist(), strict=True)
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
