"""Certificates: what an edit does to prompts, computed without an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment, check_dense, orthonormal
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.revival import revival
from erase_sd.algebra.two_sided import TwoSidedEdit

_ITERATIONS = 500  # of conjugate gradients; text states need some dozens
_CLOSE = 1e-14  # squared norm of what is left at which they stop


def change(edit: LowRankEdit, rows: Tensor) -> Tensor:
    """`‖T x − x‖ / ‖x‖` for each row, `(n,)`."""
    rows = rows.double()
    return (edit.apply_to_features(rows) - rows).norm(dim=1) / rows.norm(dim=1).clamp(min=1e-300)


def residual(edit: LowRankEdit, rows: Tensor) -> Tensor:
    """`‖T x‖ / ‖x‖` for each row, `(n,)`."""
    rows = rows.double()
    return edit.apply_to_features(rows).norm(dim=1) / rows.norm(dim=1).clamp(min=1e-300)


def recoverability(edit: LowRankEdit, rows: Tensor, weight_gram: Tensor) -> Tensor:
    """`min_c ‖W T c − W x‖ / ‖W x‖` over all layers at once, `(n,)`.

    What the best adversarial embedding could restore: 0 means that an embedding exists which the
    edited layers treat as the original treated the concept.

    Args:
        edit: The edit.
        rows: `(n, d)` original states of the concept.
        weight_gram: `(d, d)`, `Σ WᵀW` over the edited weights.
    """
    rows = rows.double()
    best = revival(
        edit, rows, weight_gram, rho=1e-9 * float(weight_gram.trace()) / len(weight_gram)
    )
    gap = edit.apply_to_features(best) - rows
    size = ((rows @ weight_gram) * rows).sum(1).clamp(min=1e-300)
    return (((gap @ weight_gram) * gap).sum(1).clamp(min=0) / size).sqrt()


def revivable(edit: LowRankEdit, rows: Tensor, weight_gram: Tensor, null: Tensor) -> Tensor:
    """How much of what sets a concept apart the best adversarial embedding brings back.

    `(n,)` in 0..1.

    `1 − recoverability / apartness`, where apartness is what recoverability would be if nothing but
    the empty prompt's states could be produced: most of a text state's norm is shared with them and
    stays on purpose.

    Args:
        edit: The edit.
        rows: `(n, d)` original states of the concept.
        weight_gram: `(d, d)`, `Σ WᵀW` over the edited weights.
        null: `(m, d)` states of the empty prompt.
    """
    rows, Q = rows.double(), orthonormal(null)
    G = weight_gram
    size = ((rows @ G) * rows).sum(1).clamp(min=1e-300)
    apart = rows.T - Q @ torch.linalg.solve(Q.T @ G @ Q, Q.T @ G @ rows.T)
    apartness = ((apart * (G @ apart)).sum(0).clamp(min=0) / size).sqrt()
    return (1 - recoverability(edit, rows, G) / apartness.clamp(min=1e-300)).clamp(0, 1)


def energy_left(moment: SecondMoment, edit: LowRankEdit) -> float:
    """`sqrt(Σ ‖T x‖² / Σ ‖x‖²)` over the rows behind a moment; 0 if there are none."""
    if moment.weights is not None:
        rows = edit.apply_to_features(moment.held)
        return _share(SecondMoment(rows, moment.weights, moment.total, moment.count), moment)
    half = moment.held - edit.A @ (edit.B.T @ moment.held)  # T C, then T (T C)ᵀ
    whole = half - (half @ edit.B) @ edit.A.T
    return _share(SecondMoment.summed(whole, moment.total, moment.count), moment)


def energy_moved(moment: SecondMoment, edit: LowRankEdit) -> float:
    """`sqrt(Σ ‖T x − x‖² / Σ ‖x‖²)` over the rows behind a moment; 0 if there are none."""
    inner = (edit.A.T @ edit.A) * (edit.B.T @ moment.times(edit.B))
    return max(float(inner.sum()), 0.0) ** 0.5 / max(moment.energy, 1e-300) ** 0.5


def _share(part: SecondMoment, whole: SecondMoment) -> float:
    return (max(part.energy, 0.0) / whole.energy) ** 0.5 if whole.energy > 0 else 0.0


def explained(moment: SecondMoment, direction: Tensor) -> float:
    """The share of a unit direction `u (d,)` that lies where rows vary: `uᵀ C (C + s I)⁻¹ u`.

    `s = tr C / d` is the mean variance: a direction in which the rows vary as much as they do on
    average counts half. By conjugate gradients, so that `C` is only multiplied with.
    """
    s = moment.ridge(1.0)
    if s <= 0:
        return 0.0
    x = torch.zeros_like(direction)
    left = step = direction
    size = float(left @ left)
    for _ in range(_ITERATIONS):
        if size < _CLOSE:
            break
        along = moment.times(step[:, None])[:, 0] + s * step
        far = size / float(step @ along)
        x, left = x + far * step, left - far * along
        size, before = float(left @ left), size
        step = left + size / before * step
    return min(max(1 - s * float(direction @ x), 0.0), 1.0)


def certify(
    edit: LowRankEdit,
    problem: Problem,
    *,
    layers: Sequence[tuple[SecondMoment, SecondMoment]] = (),
) -> dict[str, Any]:
    """Measure an edit on the features it was made of.

    Args:
        edit: The edit.
        problem: What it was made of.
        layers: For each layer whose states the model may be fed, the moments of the forget rows and
            of ordinary prompts; default: the problem's forget and retain moments.

    Returns:
        JSON-ready numbers: `rank`; `norm` (‖T‖₂); `null_change`, the largest relative change of an
        empty prompt's state; `other_null_change`, the same in other layers, if there are any;
        `forget_residual`, the share of the forget rows' norm that is left;
        `retain_drift`, root mean square relative change of ordinary prompts, both of the layer
        where they are worst; `kept_drift`, the same for the worst prompt named to keep; `spectrum`,
        top eigenvalue shares of the first layer's forget features; and `angle`, degrees between
        their first direction and where ordinary prompts vary (0: nothing sets it apart; see
        `explained`).
    """
    layers = layers or [(problem.forget, problem.retain)]
    forget, ordinary = layers[0]
    spectrum = forget.eigen[0].clamp(min=0)
    report: dict[str, Any] = {
        "rank": edit.rank,
        "norm": edit.norm,
        "null_change": float(change(edit, problem.null).max()) if len(problem.null) else 0.0,
        "forget_residual": max(energy_left(f, edit) for f, _ in layers),
        "retain_drift": max(energy_moved(o, edit) for _, o in layers),
        "kept_drift": float(change(edit, problem.kept).max()) if len(problem.kept) else 0.0,
        "spectrum": [round(float(v), 6) for v in spectrum[:8] / spectrum.sum()],
    }
    if len(problem.other_nulls):
        report["other_null_change"] = float(change(edit, problem.other_nulls).max())
    report["angle"] = math.degrees(math.acos(explained(ordinary, forget.subspace(1)[:, 0]) ** 0.5))
    return report


def certify_values(
    weights: Mapping[str, Tensor], edits: Mapping[str, TwoSidedEdit], contrast: Tensor
) -> dict[str, float]:
    """What of a concept no input at all can make the values write.

    `c = W (μ_f − μ_o)`, over all layers at once, is what sets the concept apart from other things;
    an input `x`, natural or adversarial, offers `W' x` to every layer at once. The figure is
    `min_x Σ ‖W' x − c‖² / Σ ‖c‖²` over all of `R^d`, no norm or tokenizer assumed: a larger one
    binds every attacker on the text side. Averages of states, which is what attention takes, lie in
    the same span.

    Args:
        weights: The value weights by name.
        edits: What happens to each.
        contrast: `(m, d)` `μ_f − μ_o` of each concept, in sentences that the edit was not made
            from.

    Returns:
        `unreachable`, the figure of the concept where it is smallest, and `unreachable_before`, the
        same of the unedited weights.
    """
    contrast = contrast.double()
    plain = {name: w[:, : contrast.shape[1]].double().cpu() for name, w in weights.items()}
    offered = {name: edits[name].apply_to_weight(w) for name, w in plain.items()}
    return {
        "unreachable": _beyond(offered, plain, contrast),
        "unreachable_before": _beyond(plain, plain, contrast),
    }


def _beyond(
    offered: Mapping[str, Tensor], weights: Mapping[str, Tensor], contrast: Tensor
) -> float:
    """The least `min_x Σ ‖V x − W c‖² / Σ ‖W c‖²` of some contrasts `c`, `V` offered for each `W`.

    Taken apart is the smaller of `Σ VᵀV` and, of all `V` on top of each other, `V Vᵀ`.
    """
    width = contrast.shape[1]
    outputs = sum(len(V) for V in offered.values())
    goals = {name: W @ contrast.T for name, W in weights.items()}
    size = torch.stack([c.square().sum(0) for c in goals.values()]).sum(0)
    if outputs < width:
        V = torch.cat([offered[name] for name in goals])
        values, vectors = torch.linalg.eigh(V @ V.T)
        span = vectors[:, values > 1e-10 * values[-1]]
        reached = (span.T @ torch.cat(list(goals.values()))).square().sum(0)
    else:
        check_dense(width)
        gram = torch.zeros(width, width, dtype=torch.float64)
        along = torch.zeros(width, len(contrast), dtype=torch.float64)
        for name, V in offered.items():
            gram, along = gram + V.T @ V, along + V.T @ goals[name]
        reached = (along * (torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ along)).sum(0)
    return float((1 - reached / size.clamp(min=1e-300)).clamp(0, 1).min())
