"""Two-sided edits of every layer: the forgotten are sent to where their second guess lives, the retained stay."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erase_sd.vision.cache import Run
from erase_sd.vision.layers import Layer, evaluating, in_order, layers, place, watching
from erase_sd.vision.samples import Samples
from erase_sd.vision.task import Task
from erase_sd.vision.train import logits


@dataclass(frozen=True)
class TwoSided:
    """Options of `two_sided`.

    Attributes:
        layers: Which, see `erase_sd.vision.layers`; they are edited in the order in which they run.
        samples: At most so many retained samples, and half as many forget samples, are read.
        rows: At most about so many rows of each layer and set.
        mu: How much a forget sample weighs against a retained one.
        epsilon: Relative ridge on the moments.
        gain: Share of the way to the second guess's mean that a layer sends the forgotten.
    """

    layers: str | tuple[str, ...] = "all"
    samples: int = 4000
    rows: int = 20_000
    mu: float = 1.0
    epsilon: float = 1e-3
    gain: float = 1.0


def two_sided(model: nn.Module, task: Task, options: TwoSided, run: Run) -> nn.Module:
    """Layer after layer: `W ← W + Δ Sᵀ (C_r + μ C_f + ε s I)⁻¹`, the least squares of two wishes.

    A retained row keeps its output, `ΔW x = 0`; a forget row's output moves by `δ_j = γ (m_j − m_{f,j})`, from the mean
    output of the forget samples whose second guess is class `j` to that of class `j`. The columns of `Δ` are the `δ_j`
    (the left side: nothing is written but differences of class means), those of `S` the sums `μ Σ x` over each group,
    and the inverse is the right side: what reads the forgotten and, weighed by the layer's retained moment, little
    else. Its rank is at most the number of classes. Features come from the model as edited so far.

    An edit of the last layer alone hides a class from the logits and leaves it in the features; this one moves the
    features themselves, so that a classifier fitted anew finds less to hold on to.

    Raises:
        ValueError: If no whole class is forgotten.
    """
    if not task.classes:
        raise ValueError("two-sided sends whole classes elsewhere; these samples' classes stay")
    retain = task.retain.sample(options.samples, run.seed)
    forget = task.forget.sample(max(1, options.samples // 2), run.seed)
    out = logits(model, forget.x)
    guess = out.index_fill(1, torch.tensor(task.classes), -torch.inf).argmax(1)
    new = copy.deepcopy(model)
    asked = {y.name for y in layers(new, options.layers, forget.x)}
    for layer in [y for y in in_order(new, forget.x) if y.name in asked]:
        kept = _rows(new, layer, retain, options.rows, run)
        gone = _rows(new, layer, forget.relabelled(guess), options.rows, run)
        edited = []
        for W, (x_r, y_r), (x_f, y_f) in zip(layer.matrices(), kept, gone, strict=True):
            edited.append(W + step(W.double().cpu(), (x_r, y_r), (x_f, y_f), options).to(W))
        layer.write(edited)
    return new


def step(
    W: Tensor, kept: tuple[Tensor, Tensor], gone: tuple[Tensor, Tensor], options: TwoSided
) -> Tensor:
    """The change of one weight, `(d_out, d)` float64.

    Args:
        W: `(d_out, d)`.
        kept: `(n, d)` rows of retained samples and `(n,)` their classes.
        gone: `(m, d)` rows of forget samples and `(m,)` the classes of their second guesses.
        options: Of the method.
    """
    (x_r, y_r), (x_f, y_f) = kept, gone
    Y_r, Y_f = x_r @ W.T, x_f @ W.T
    moves, sums = [], []
    for j in y_f.unique().tolist():
        if not (y_r == j).any():
            continue
        group = y_f == j
        moves.append(options.gain * (Y_r[y_r == j].mean(0) - Y_f[group].mean(0)))
        sums.append(options.mu * x_f[group].sum(0) / len(x_f))
    if not moves:
        return torch.zeros_like(W)
    C = x_r.T @ x_r / len(x_r) + options.mu * x_f.T @ x_f / len(x_f)
    ridge = options.epsilon * C.trace() / len(C)
    if float(ridge) <= 0:
        return torch.zeros_like(W)
    reads = torch.linalg.solve(C + ridge * torch.eye(len(C), dtype=C.dtype), torch.stack(sums, 1))
    return torch.stack(moves, 1) @ reads.T


@torch.no_grad()
def _rows(
    model: nn.Module, layer: Layer, samples: Samples, limit: int, run: Run
) -> list[tuple[Tensor, Tensor]]:
    """For each group `(n, d)` float64 rows that a layer reads, drawn evenly, with their samples' labels."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layer.groups)]
    generator = run.generator()
    labels: list[Tensor] = []

    def see(layer: Layer, x: Tensor) -> None:
        start, each = 0, _each(layer, x)
        share = min(1.0, limit / (each * len(samples)))
        for chunk in layer.rows(x):
            count = len(chunk[0]) // each
            y = labels[0][start : start + count].repeat_interleave(each)
            start += count
            keep = max(1, round(share * len(y)))
            picked = torch.randperm(len(y), generator=generator)[:keep]
            for group, rows in zip(found, chunk, strict=True):
                group.append((rows.cpu()[picked].double(), y[picked]))

    device, dtype = place(model)
    with evaluating(model), watching([layer], see):
        for index in torch.arange(len(samples)).split(256):
            labels[:] = [samples.y[index]]
            model(samples.x[index].to(device, dtype))
    return [tuple(torch.cat(p) for p in zip(*group, strict=True)) for group in found]  # type: ignore[misc]


def _each(layer: Layer, x: Tensor) -> int:
    """Rows that one sample gives."""
    if isinstance(layer.module, nn.Conv2d):
        return sum(len(c[0]) for c in layer.rows(x[:1]))
    return x[0].numel() // x.shape[-1]
