"""RECE: find the embedding that revives the concept, erase it as well, repeat."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from erase_sd.edit import LowRankEdit
from erase_sd.methods.problem import Problem
from erase_sd.methods.uce import uce


def revival(edit: LowRankEdit, concepts: Tensor, weight_gram: Tensor, *, rho: float) -> Tensor:
    """The embeddings that best bring concepts back through the edited weights, `(c, d)`.

    `c' = (ρ I + Σ W'ᵀW')⁻¹ (Σ W'ᵀ W) c` with `W' = W T`, hence from `G = Σ WᵀW` alone:
    `(ρ I + Tᵀ G T)⁻¹ Tᵀ G c`. Source: arXiv 2407.12383, Eq. 9.
    """
    T = edit.matrix
    eye = torch.eye(len(T), dtype=torch.float64)
    solve = torch.linalg.solve(rho * eye + T.T @ weight_gram @ T, T.T @ weight_gram @ concepts.T)
    return solve.T


def rece(
    problem: Problem,
    *,
    rounds: int = 3,
    rho: float = 0.1,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    ridge: float = 0.5,
) -> LowRankEdit:
    """UCE, then `rounds` more of it, each on the previous result's revival embeddings.

    Source: arXiv 2407.12383; ρ = 0.1 and 3 rounds for nudity, ρ = 1e-3 for objects.
    """
    if problem.weight_gram.shape != (problem.width, problem.width):
        raise ValueError("RECE needs the weights' Gram matrix; give the problem a `weight_gram`")
    scales = dict(erase_scale=erase_scale, preserve_scale=preserve_scale, ridge=ridge)
    edit = uce(problem, **scales)
    for _ in range(rounds):
        revived = revival(edit, problem.concepts, problem.weight_gram, rho=rho)
        step = uce(replace(problem, concepts=revived), **scales)
        edit = step.then(edit)  # W ← (W T) T': the newest map acts on the features first
    return edit
