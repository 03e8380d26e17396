"""Two-sided edits of features.

What reads the forgotten is taken out, what their second guess looks like is put in.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from erase_sd.vision.cache import Run
from erase_sd.vision.layers import Layer, evaluating, in_order, layers, place, watching
from erase_sd.vision.networks import Residual
from erase_sd.vision.samples import Samples, at_once
from erase_sd.vision.task import Task
from erase_sd.vision.train import logits

FEWEST = 100  # samples that are read at least, if there are so many
SMALLEST = 0.05  # gain of a norm's channel below which its layer cannot make up for a shortcut


@dataclass(frozen=True)
class TwoSided:
    """Options of `two_sided`.

    Attributes:
        layers: Which, see `erase_sd.vision.layers`, edited in the order in which they run; None
            takes the last two.
        samples: At most so many retained samples, and half as many forget samples, are read.
        rows: At most about so many rows of each layer and set, whole samples of them.
        mu: How much a forget row weighs against a retained one.
        epsilon: Relative ridge on the moments.
    """

    layers: str | tuple[str, ...] | None = None
    samples: int = 2500
    rows: int = 64_000
    mu: float = 1.0
    epsilon: float = 1e-3


def two_sided(model: nn.Module, task: Task, options: TwoSided, run: Run) -> nn.Module:
    """Layer after layer the least squares of two wishes, in closed form.

    A retained row keeps its output, `W' x = W x`. A forget row's output becomes `m`, the mean
    output at its place in the image over retained samples of its second guess, the class that the
    model finds likeliest after the forgotten: `W' = W T + μ E[m xᵀ] K⁻¹`, `K = C_r + μ C_f + ε s
    I`, `T = I − μ C_f K⁻¹`. `T` is the right side, which takes out what reads the forgotten under
    the protection of the layer's retained moment; the other term is the left side, which writes in
    its place what the neighbours look like. Features come from the model as edited so far.

    Where a layer ends a residual block, output means the sum that the next layer reads: what the
    shortcut carries past the layer is made up for by the layer, or it would bring the class back.

    An edit of the last layer alone hides a class from the logits and leaves it in the features;
    this one moves the features themselves, so that a classifier fitted anew finds less to hold on
    to.

    Raises:
        ValueError: If no whole class is forgotten.
    """
    if not task.classes:
        raise ValueError("two-sided sends whole classes elsewhere; these samples' classes stay")
    retain = task.retain.sample(options.samples, run.seed)
    forget = task.forget.sample(max(1, options.samples // 2), run.seed)
    out = logits(model, forget.x)
    guess = out.index_fill(1, torch.tensor(task.classes), -torch.inf).argmax(1)
    forget = forget.relabelled(guess)
    new = copy.deepcopy(model)
    order = in_order(new, forget.x)
    if options.layers is None:
        chosen = order[-2:]
        run.chose(layers=tuple(y.name for y in chosen))
    else:
        asked = {y.name for y in layers(new, options.layers, forget.x)}
        chosen = [y for y in order if y.name in asked]
    for layer in chosen:
        kept, gone = (
            _past(new, layer, part, _rows(new, layer, part, options.rows))
            for part in (retain, forget)
        )
        pairs = zip(layer.matrices(), kept, gone, strict=True)
        layer.write([W + change(W, r, f, options).to(W) for W, r, f in pairs])
    return new


@dataclass(frozen=True, eq=False)
class Rows:
    """What one group of a layer reads.

    Attributes:
        x: `(n, places, d)` float32.
        y: `(n,)` class of each sample, or of its second guess.
        past: `(n, places, d_out)` what a shortcut adds to the layer's output, in its units.
    """

    x: Tensor
    y: Tensor
    past: Tensor | None = None

    def output(self, weight: Tensor) -> Tensor:
        """What is read of the layer, `(n, places, d_out)`, up to a constant."""
        made = self.x @ weight.T
        return made if self.past is None else made + self.past

    def second(self) -> Tensor:
        """`Xᵀ X / rows`, `(d, d)` float64."""
        flat = self.x.flatten(0, 1)
        return (flat.T @ flat).double() / len(flat)


def change(W: Tensor, kept: Rows, gone: Rows, options: TwoSided) -> Tensor:
    """What is added to a weight, `(d_out, d)` float64.

    Args:
        W: `(d_out, d)`.
        kept: Retained rows and their classes.
        gone: Forget rows and the classes of their second guesses.
        options: Of the method.
    """
    weight = W.float().cpu()
    before, kept_output = gone.output(weight), kept.output(weight)
    target = before.clone()
    for j in torch.unique(gone.y).tolist():
        if bool((kept.y == j).any()):
            target[gone.y == j] = kept_output[kept.y == j].mean(0)
    moved = (target - before).flatten(0, 1)
    flat = gone.x.flatten(0, 1)
    K = kept.second() + options.mu * gone.second()
    ridge = options.epsilon * K.trace() / len(K)
    if float(ridge) <= 0:
        return torch.zeros(weight.shape, dtype=torch.float64)
    K = K + ridge * torch.eye(len(K), dtype=torch.float64)
    wanted = options.mu * (moved.T @ flat).double() / len(flat)
    solved: Tensor = torch.linalg.solve(K, wanted.T)
    return solved.T


@torch.no_grad()
def _rows(model: nn.Module, layer: Layer, samples: Samples, limit: int) -> list[Rows]:
    """For each group of a layer what it reads on as many samples as give about `limit` rows.

    At least 100 samples; where these give more than twice as many rows, evenly spaced places of
    each, the same ones.
    """
    found: list[list[Tensor]] = [[] for _ in range(layer.groups)]
    counts: list[int] = []  # rows of each batch, before places are left out
    running: list[int] = []  # samples of each batch

    def see(layer: Layer, x: Tensor) -> None:
        batch = running[-1]
        if len(x) % batch or len(counts) == len(running):
            raise ValueError(
                f"{layer.name} does not read each sample once and one after another: expected "
                f"layers without it"
            )
        places = layer.places(x) * (len(x) // batch)
        kept = torch.arange(places)
        if places * FEWEST > 2 * limit:  # the same ones in both sets
            kept = torch.linspace(0, places - 1, max(1, 2 * limit // FEWEST)).long()
        start = 0
        for chunk in layer.rows(x):
            picked = torch.isin((start + torch.arange(len(chunk[0]))) % places, kept)
            start += len(picked)
            for group, rows in zip(found, chunk, strict=True):
                group.append(rows.float().cpu()[picked])
        counts.append(start)

    device, dtype = place(model)
    with evaluating(model), watching([layer], see):
        for index in torch.split(torch.arange(len(samples)), at_once(samples.x, FEWEST)):
            running.append(len(index))
            model(samples.x[index].to(device, dtype))
            if len(counts) < len(running):
                raise ValueError(f"the layer {layer.name} does not run in a forward pass")
            if sum(running) >= FEWEST and sum(counts) >= limit:
                break
    labels = samples.y[: sum(running)]
    return [Rows(torch.cat(g).reshape(len(labels), -1, layer.width), labels) for g in found]


@torch.no_grad()
def _past(model: nn.Module, layer: Layer, samples: Samples, rows: list[Rows]) -> list[Rows]:
    """Rows with what goes past their layer, if it ends a residual block, in units of its output."""
    block = model.get_submodule(layer.name.rpartition(".")[0])
    if not isinstance(block, Residual) or block.ending()[0] is not layer.module:
        return rows
    norm = block.ending()[1]
    assert norm.running_var is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    gain = torch.where(gain < 0, -1.0, 1.0) * gain.abs().clamp(min=SMALLEST)
    found: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        past = (block.skip(args[0]) / gain[:, None, None]).float()
        found.append(past.flatten(2).transpose(1, 2).cpu())

    handle = block.register_forward_pre_hook(see)
    try:
        logits(model, samples[torch.arange(len(rows[0].x))].x)
    finally:
        handle.remove()
    whole = torch.cat(found)
    kept = torch.linspace(0, whole.shape[1] - 1, rows[0].x.shape[1]).long()  # places, as in _rows
    parts = whole[:, kept].chunk(layer.groups, dim=-1)
    return [replace(r, past=p) for r, p in zip(rows, parts, strict=True)]
