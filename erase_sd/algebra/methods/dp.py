"""Double Projections: onto what is safe, by a change that what is preserved does not see."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import orthonormal
from erase_sd.algebra.options import within
from erase_sd.algebra.problem import Problem


@dataclass(frozen=True)
class Options:
    """Options of Double Projections.

    Attributes:
        energy: Share of the preserved states' squared norm that may be given up; a long list fills
            the space otherwise.
    """

    energy: float = 1e-3

    def __post_init__(self) -> None:
        within("energy", self.energy, 0, 1)


def solve(problem: Problem, options: Options) -> LowRankEdit:
    """`T c = S S⁺ c` for every concept, and `T x = x` for what is preserved.

    `T = I + (S S⁺ C − C)(Xᵀ X)⁺ (U₂ X)ᵀ` with `X = U₂ᵀ C`: `S` spans the anchors and the kept
    prompts; `U₂` is the left null space of the kept prompts' and the empty prompt's states.

    Source: arXiv 2604.10032; several concepts at once are solved jointly.

    Raises:
        ValueError: If what is preserved fills the space.
    """
    kept = torch.cat([problem.kept, problem.null])
    safe = torch.cat([problem.anchors, problem.kept])
    C, seen = problem.concepts.T, orthonormal(kept, energy=options.energy)
    if seen.shape[1] >= problem.width:
        raise ValueError("the protected states fill the whole feature space: nothing can be erased")
    S = orthonormal(safe)
    X = C - seen @ (seen.T @ C)  # U₂ U₂ᵀ C
    return LowRankEdit(C - S @ (S.T @ C), torch.linalg.pinv(X).T)
