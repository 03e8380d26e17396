"""Robustness: search for the embedding that brings a concept back, erase it too, repeat."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from erase_sd.algebra.certificate import revivable
from erase_sd.algebra.edit import LowRankEdit, joint
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import NothingLeft, Problem
from erase_sd.algebra.revival import revival

logger = logging.getLogger("erase_sd")

TOLERANCE = 0.2  # share of what sets the concept apart that an embedding may still bring back
ROUNDS = 8  # for each concept


def harden(
    problem: Problem,
    solve: Callable[..., LowRankEdit],
    *,
    tolerance: float = TOLERANCE,
    rounds: int | None = None,
) -> tuple[LowRankEdit, list[float]]:
    """Solve, then remove what would revive each concept, until little can be revived.

    Every round finds, in closed form, the embeddings that the edited layers take for the concepts,
    and erases the one direction of them that stands out most from the background. The stop rule
    reads the weights
    alone: no detector, no image.

    Args:
        problem: As for any method, with `concepts` and `weight_gram`.
        solve: A method that gives a projection; called again with `rank=1` for each round.
        tolerance: Stop when at most this share of each concept can be brought back.
        rounds: At most so many further directions; default: 8 for each concept, 64 in all.

    Returns:
        The joint edit, and the revivable share before each round and at the end.

    Raises:
        ValueError: If the method's edit is no projection, or the weights are unknown.
    """
    edit = solve(problem)
    if edit.gains is None:
        raise ValueError(
            "--robust needs a method that projects: rayleigh, unlink, unlink-deflated or "
            "unlink-oblique"
        )
    if problem.weight_gram.shape != (problem.width, problem.width) or not len(problem.concepts):
        raise ValueError("--robust needs the weights that the edit is for")
    rounds = min(ROUNDS * len(problem.concepts), 64) if rounds is None else rounds
    edits, history = [edit], []
    for step in range(rounds + 1):
        shares = revivable(edit, problem.concepts, problem.weight_gram, problem.null)
        history.append(float(shares.max()))
        if step == rounds or history[-1] <= tolerance:
            break
        alive = problem.concepts[shares > tolerance]
        # A ridge just large enough for the search to be well-posed.
        rho = 1e-9 * float(problem.weight_gram.trace()) / problem.width
        seen = edit.apply_to_features(revival(edit, alive, problem.weight_gram, rho=rho))
        try:
            edits.append(
                solve(replace(problem, forget=SecondMoment.of(seen), concepts=alive), rank=1)
            )
        except NothingLeft:
            logger.warning(
                "what would revive the concept lies inside what is protected; "
                "robust stops at %.0f %%",
                100 * history[-1],
            )
            break
        edit = joint(edits)
    return edit, history
