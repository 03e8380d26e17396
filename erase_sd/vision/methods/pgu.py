"""PGU: forget by gradient steps that cannot move what the retained data's features span.

Source: arXiv 2312.04095.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase_sd.vision.cache import Cache, Run
from erase_sd.vision.features import collect
from erase_sd.vision.layers import Layer, evaluating, layers
from erase_sd.vision.samples import Samples, at_once, portions
from erase_sd.vision.task import Task
from erase_sd.vision.train import accuracy, batches, on

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PGU:
    """Options of `pgu`.

    Attributes:
        gamma: Share of the retained spectrum that is protected.
        criterion: Share of the squares of singular values ("sigma2"), or of themselves ("sigma",
            the paper's, which on small networks protects nearly everything).
        epochs: At most.
        lr: First learning rate, falling exponentially to `lr_last`.
        lr_last: Last one.
        batch: Forget samples a step.
        entropy: λ, weight of the entropy.
        floor: ε, added within the logarithm.
        stop: Stop early: for whole classes when forget samples are recognised no better than by
            chance, else when the accuracy on `task.validation` exceeds that on forget samples; of
            the last two epochs the nearer one counts.
    """

    gamma: float = 0.9
    criterion: Literal["sigma", "sigma2"] = "sigma2"
    epochs: int = 100
    lr: float = 0.05
    lr_last: float = 0.01
    batch: int = 64
    entropy: float = 0.2
    floor: float = 0.05
    stop: bool = True


@dataclass(frozen=True)
class Depoison(PGU):
    """Options of `depoison`.

    Those of `pgu`, with less protected, and `recombine` directions free in the last layer.
    """

    gamma: float = 0.6
    epochs: int = 30
    stop: bool = False
    recombine: int = 400


def forget_loss(out: Tensor, y: Tensor, *, entropy: float = 0.2, floor: float = 0.05) -> Tensor:
    """`mean[−log(1 − p_y + 0.05)] − 0.2 mean H(p)`: doubt the label, spread the rest."""
    p = out.float().softmax(1)
    spread = -(p * p.clamp(min=1e-12).log()).sum(1)
    return -(1 - p.gather(1, y[:, None])[:, 0] + floor).log().mean() - entropy * spread.mean()


def depoison_loss(out: Tensor, y: Tensor, *, entropy: float = 0.2, floor: float = 0.05) -> Tensor:
    """Doubt the poisoned label, and be sure of one of the others.

    `… + 0.2 H(q)`, `q` over the other classes.
    """
    p = out.float().softmax(1)
    others = out.float().scatter(1, y[:, None], -torch.inf).softmax(1)
    spread = -(others * others.clamp(min=1e-12).log()).sum(1)
    return -(1 - p.gather(1, y[:, None])[:, 0] + floor).log().mean() + entropy * spread.mean()


def pgu(model: nn.Module, task: Task, options: PGU, run: Run) -> nn.Module:
    """Plain SGD on the forget samples, each step projected off the retained core gradient space.

    With a cache, no retained sample is read: `C_r = C − C_f`. The loss is the one that the paper's
    text and code mean.

    Raises:
        ValueError: If it diverges, or single samples come without unseen ones to stop at.
    """

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return forget_loss(out, y, entropy=options.entropy, floor=options.floor)

    return _descend(model, task, options, run, loss, None)


def depoison(model: nn.Module, task: Task, options: Depoison, run: Run) -> nn.Module:
    """Unlearn wrongly labelled samples: doubt their label, let the last layer recombine (TRGP)."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return depoison_loss(out, y, entropy=options.entropy, floor=options.floor)

    return _descend(model, task, options, run, loss, Recombined(options.recombine))


def incremental(
    model: nn.Module,
    tasks: Sequence[Task],
    cache: Cache,
    *,
    seed: int = 0,
    options: PGU | None = None,
) -> tuple[nn.Module, Cache]:
    """Forget task after task; what is left of the cache is the next one's.

    The first tasks' edits move features a little, so later caches are those of the original
    network's features less what was deleted, as in the paper.
    """
    for task in tasks:
        left = remaining(model, task, cache)
        model = pgu(model, task, options or PGU(), Run(seed, cache))
        cache = left
    return model, cache


def remaining(model: nn.Module, task: Task, cache: Cache) -> Cache:
    """What is left of a cache when a task's forget samples are deleted."""
    return cache.without(collect(model, layers(model), task.forget.x))


class Projected:
    """Removes from each gradient what lies in the retained space: `g ← g − g M Mᵀ`."""

    def __init__(self, model: nn.Module, spaces: dict[str, list[Tensor]]) -> None:
        self.layers: list[Layer] = [y for y in layers(model) if y.name in spaces]
        weight = self.layers[0].weight
        self.spaces = {
            n: [M.to(weight.device, weight.dtype) for M in Ms] for n, Ms in spaces.items()
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that move; biases and norms stay."""
        return [y.weight for y in self.layers]

    def project(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Project one gradient for each weight."""
        made = []
        for layer, g in zip(self.layers, gradients, strict=True):
            parts = [p.reshape(len(p), -1) for p in g.chunk(layer.groups)]
            free = [p - (p @ M) @ M.T for p, M in zip(parts, self.spaces[layer.name], strict=True)]
            made.append(torch.cat(free).reshape(g.shape))
        return made


class Recombined:
    """TRGP's freedom for the last layer: `W_eff = W + W S (Q − I) Sᵀ`, `S` its retained basis.

    `Q` is the identity but for a learnable block on the last `min(k, size)` directions.
    """

    def __init__(self, size: int = 400) -> None:
        self.size = size
        self.block: nn.Parameter | None = None

    def attach(self, layer: Layer, space: Tensor) -> list[nn.Parameter]:
        """Let a layer use `W_eff`; returns what is learnt."""
        self.layer = layer
        self.S = space[:, -self.size :].to(layer.weight)
        self.block = nn.Parameter(torch.eye(self.S.shape[1]).to(layer.weight))
        self.handle = layer.module.register_forward_hook(self._hook)
        return [self.block]

    @property
    def _extra(self) -> Tensor:
        assert self.block is not None
        return self.block - torch.eye(len(self.block)).to(self.block)

    def _hook(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return output + F.linear(args[0] @ self.S @ self._extra.T @ self.S.T, module.weight)

    @torch.no_grad()
    def bake(self) -> None:
        """Write `W_eff` into the weight."""
        self.handle.remove()
        weight = self.layer.weight
        weight.add_(weight @ self.S @ self._extra @ self.S.T)


def _descend(
    model: nn.Module, task: Task, options: PGU, run: Run, loss: Loss, last: Recombined | None
) -> nn.Module:
    """The steps of both."""
    new = copy.deepcopy(model)
    if run.cache is None:
        left = Cache.of(model, task.retain)
    else:
        left = remaining(model, task, run.cache)
    spaces = left.spaces(options.gamma, options.criterion)
    run.chose(protected=protected(spaces))
    projected = Projected(new, spaces)
    inner: list[nn.Parameter] = []
    if last is not None:
        layer = layers(new, "last", task.forget.x)[0]
        inner = last.attach(layer, spaces[layer.name][0])
    watch = Stopping(task, options)
    generator = run.generator()
    with evaluating(new):  # batch norm's statistics are the retained data's; they stay
        for epoch in range(options.epochs):
            rate = options.lr * (options.lr_last / options.lr) ** (
                epoch / max(1, options.epochs - 1)
            )
            for index in batches(len(task.forget), options.batch, generator):
                _step(new, task.forget[index], projected, inner, loss, rate)
            if not all(torch.isfinite(p).all() for p in projected.parameters):
                raise ValueError(f"PGU diverged: lower the learning rate ({options.lr})")
            if watch(new):
                break
    if last is not None:
        last.bake()
    return new


def protected(spaces: dict[str, list[Tensor]]) -> dict[str, str]:
    """How many directions of each layer may not be touched, of how many: `k/d`.

    Where nearly all are taken nothing can be forgotten.

    >>> protected({"head": [torch.zeros(64, 12)]})
    {'head': '12/64'}
    """
    found = {}
    for name, groups in spaces.items():
        taken, whole = sum(M.shape[1] for M in groups), sum(len(M) for M in groups)
        found[name] = f"{taken}/{whole}"
    return found


def _step(
    model: nn.Module,
    part: Samples,
    projected: Projected,
    inner: Sequence[nn.Parameter],
    loss: Loss,
    rate: float,
) -> None:
    """One projected step on some samples; what recombines the last layer moves a tenth as fast."""
    moving = projected.parameters
    wanted = [*moving, *inner]
    steps = [torch.zeros_like(p) for p in wanted]
    for index in portions(torch.arange(len(part)), at_once(part.x, len(part))):
        value = loss(model(on(model, part.x[index])), on(model, part.y[index]))
        found = torch.autograd.grad(value, wanted, allow_unused=True)
        for t, g in zip(steps, found, strict=True):
            if g is not None:
                t += g * (len(index) / len(part))
    with torch.no_grad():
        for p, g in zip(moving, projected.project(steps[: len(moving)]), strict=True):
            p.sub_(rate * g)
        for p, g in zip(inner, steps[len(moving) :], strict=True):
            p.sub_(rate / 10 * g)


class Stopping:
    """Whether enough is forgotten; of the last two epochs the nearer one is put back."""

    def __init__(self, task: Task, options: PGU) -> None:
        if options.stop and not task.classes and task.validation is None:
            raise ValueError(
                "to know when to stop, PGU needs unseen samples (task.validation), or stop = False"
            )
        self.task, self.stop = task, options.stop
        self.before: tuple[float, dict[str, Tensor]] | None = None

    def __call__(self, model: nn.Module) -> bool:
        """Whether to stop after this epoch; the model may go back to the one before."""
        if not self.stop:
            return False
        held = self.task.validation
        if self.task.classes or held is None:
            bar = 100 / self.task.outputs
        else:
            bar = accuracy(model, held)
        gap = accuracy(model, self.task.forget) - bar
        if gap > 0:
            self.before = gap, {k: v.clone() for k, v in model.state_dict().items()}
            return False
        if self.before is not None and self.before[0] < abs(gap) and not self.task.classes:
            model.load_state_dict(self.before[1])
        return True
