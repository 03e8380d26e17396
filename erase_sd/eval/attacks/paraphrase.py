"""Another name for the concept: the row's prompt has it already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from erase_sd.eval.attacks.target import Target


@contextmanager
def paraphrase(target: Target, steps: int | None = None) -> Iterator[str]:
    """The prompt as it is.

    Raises:
        ValueError: If steps are given: there is nothing to repeat.
    """
    if steps is not None:
        raise ValueError(f"a paraphrase takes no steps, got {steps}")
    yield target.prompt
