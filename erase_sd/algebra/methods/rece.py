"""RECE: find the embedding that revives the concept, erase it as well, repeat."""

from __future__ import annotations

from dataclasses import dataclass, replace

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.methods import uce
from erase_sd.algebra.moments import check_dense
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.revival import revival


@dataclass(frozen=True)
class Options(uce.Options):
    """Options of RECE: those of UCE, and its own.

    Attributes:
        rounds: How often the revived concept is erased again; 3 for nudity.
        rho: Ridge of the search: 0.1 for nudity, 1e-3 for objects.
    """

    rounds: int = 3
    rho: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        within("rounds", self.rounds, 0, 1000)
        within("rho", self.rho, 1e-12, 1e9)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """UCE, then `rounds` more of it, each on the previous result's revival embeddings.

    Source: arXiv 2407.12383.

    Raises:
        ValueError: If the problem has no `weight_gram`, or is too wide for one.
    """
    check_dense(problem.width)
    if problem.weight_gram.shape != (problem.width, problem.width):
        raise ValueError("RECE needs the weights' Gram matrix; give the problem a `weight_gram`")
    edit = uce.solve(problem, options)
    for _ in range(options.rounds):
        revived = revival(edit, problem.concepts, problem.weight_gram, rho=options.rho)
        step = uce.solve(replace(problem, concepts=revived), options)
        edit = step.then(edit)  # W ← (W T) T': the newest map acts on the features first
    return edit
