"""PGU: forget by gradient steps that cannot move what the retained data's features span."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase_sd.algebra.moments import SecondMoment
from erase_sd.models.files import atomic_path
from erase_sd.models.tensor_files import tensor_hash
from erase_sd.vision.layers import Layer, collect, evaluating, layers
from erase_sd.vision.task import Samples, Task
from erase_sd.vision.train import accuracy, batches, on

Moments = dict[str, list[SecondMoment]]


@dataclass(frozen=True)
class Cache:
    """The core gradient space of a training set: each layer's Gram matrix by its eigenvectors.

    It holds no sample. What is forgotten is subtracted: `U Σ² Uᵀ − C_f`, so that retained data is never read.

    Attributes:
        bases: For each layer and group, `(d, d)` eigenvectors, strongest first, and `(d,)` singular values `Σ`.
    """

    bases: dict[str, list[tuple[Tensor, Tensor]]]

    @classmethod
    def of(cls, model: nn.Module, samples: Samples) -> Cache:
        """One pass over the training set, in evaluation mode and without augmentation."""
        return cls.from_moments(collect(model, layers(model, "all"), samples.x))

    @classmethod
    def from_moments(cls, moments: Moments) -> Cache:
        """Decompose; eigenvalues below zero are rounding and become zero."""
        bases = {}
        for name, groups in moments.items():
            pairs = []
            for moment in groups:
                values, vectors = torch.linalg.eigh((moment.gram + moment.gram.T) / 2)
                pairs.append((vectors.flip(1), values.flip(0).clamp(min=0).sqrt()))
            bases[name] = pairs
        return cls(bases)

    def moments(self) -> Moments:
        """The Gram matrices again."""
        return {
            name: [SecondMoment((U * s.square()) @ U.T, torch.zeros(len(U), dtype=U.dtype), 1.0) for U, s in pairs]
            for name, pairs in self.bases.items()
        }

    def without(self, moments: Moments) -> Cache:
        """The cache of what is left when samples with these moments are deleted."""
        left = {}
        for name, groups in self.moments().items():
            pairs = zip(groups, moments[name], strict=True)
            left[name] = [SecondMoment(a.gram - b.gram, a.total, 1.0) for a, b in pairs]
        return Cache.from_moments(left)

    def save(self, path: str | Path, model: nn.Module, *, force: bool = False) -> Path:
        """Write it, with the fingerprint of the model it belongs to, atomically."""
        from safetensors.torch import save_file

        tensors = {
            f"{name}|{i}|{part}": tensor.contiguous()
            for name, pairs in self.bases.items()
            for i, pair in enumerate(pairs)
            for part, tensor in zip(("U", "s"), pair, strict=True)
        }
        with atomic_path(Path(path), force=force) as draft:
            save_file(tensors, draft, metadata={"pgu_cache": fingerprint(model)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> Cache:
        """Read one back.

        Raises:
            ValueError: If the file is missing, damaged, or another model's.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise ValueError(f"no such cache: {path}")
        try:
            with safe_open(path, "pt") as f:
                owner = (f.metadata() or {}).get("pgu_cache")
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if owner is None:
            raise ValueError(f"{path} is not a cache of core gradient spaces")
        if owner != fingerprint(model):
            raise ValueError(f"{path} belongs to another model; make one for this model from its training data")
        bases: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for layer in layers(model, "all"):
            pairs = [
                (tensors.get(f"{layer.name}|{i}|U"), tensors.get(f"{layer.name}|{i}|s")) for i in range(layer.groups)
            ]
            found = [(U, s) for U, s in pairs if U is not None and s is not None]
            if len(found) < layer.groups:
                raise ValueError(f"{path} lacks the layer {layer.name}")
            bases[layer.name] = found
        return cls(bases)

    def spaces(self, gamma: float, criterion: str = "sigma") -> dict[str, list[Tensor]]:
        """For each layer the basis `M` `(d, k)` of the space that steps may not touch.

        `k` is the smallest with `Σ_{i ≤ k} σ_i ≥ γ Σ σ_i` (criterion "sigma") or of `σ²` ("sigma2"). On small networks
        "sigma" takes nearly everything, and then nothing can be forgotten: look at `k / d`.

        Raises:
            ValueError: If γ is not in 0..1 or the criterion unknown.
        """
        if not 0 < gamma <= 1 or criterion not in ("sigma", "sigma2"):
            raise ValueError(f"expected γ in (0, 1] and sigma or sigma2, got {gamma} and {criterion!r}")
        found: dict[str, list[Tensor]] = {}
        for name, pairs in self.bases.items():
            found[name] = []
            for U, s in pairs:
                weight = s if criterion == "sigma" else s.square()
                reached = weight.cumsum(0) >= gamma * weight.sum() * (1 - 1e-12)
                found[name].append(U[:, : int(reached.int().argmax()) + 1])
        return found


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over a model's weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor_hash(value)}".encode())
    return digest.hexdigest()


def forget_loss(out: Tensor, y: Tensor) -> Tensor:
    """`mean[−log(1 − p_y + 0.05)] − 0.2 mean H(p)`: doubt the label, spread the rest."""
    p = out.float().softmax(1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum(1)
    return -(1 - p.gather(1, y[:, None])[:, 0] + 0.05).log().mean() - 0.2 * entropy.mean()


def depoison_loss(out: Tensor, y: Tensor) -> Tensor:
    """Doubt the poisoned label, and be sure of one of the others: `… + 0.2 H(q)`, `q` over the other classes."""
    p = out.float().softmax(1)
    others = out.float().scatter(1, y[:, None], -torch.inf).softmax(1)
    entropy = -(others * others.clamp(min=1e-12).log()).sum(1)
    return -(1 - p.gather(1, y[:, None])[:, 0] + 0.05).log().mean() + 0.2 * entropy.mean()


class Projected:
    """Removes from each gradient what lies in the retained space: `g ← g − g M Mᵀ`."""

    def __init__(self, model: nn.Module, spaces: dict[str, list[Tensor]]) -> None:
        self.layers: list[Layer] = [y for y in layers(model, "all") if y.name in spaces]
        weight = self.layers[0].weight
        self.spaces = {n: [M.to(weight.device, weight.dtype) for M in Ms] for n, Ms in spaces.items()}

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


def pgu(
    model: nn.Module,
    task: Task,
    *,
    gamma: float = 0.9,
    criterion: str = "sigma2",
    epochs: int = 100,
    lr: float = 0.05,
    lr_last: float = 0.01,
    batch: int = 64,
    seed: int = 0,
    cache: Cache | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = forget_loss,
    stop: bool = True,
    last: Recombined | None = None,
    **_: Any,
) -> nn.Module:
    """Plain SGD on the forget samples, each step projected off the retained core gradient space.

    Args:
        model: The model.
        task: The task; its retained samples are read only if there is no `cache`.
        gamma: Share of the retained spectrum that is protected.
        criterion: Of singular values ("sigma", the paper's) or of their squares.
        epochs: At most.
        lr: First learning rate, falling exponentially to `lr_last`.
        lr_last: Last one.
        batch: Forget samples a step.
        seed: Of their order.
        cache: Core gradient space of *all* training samples; what is forgotten is subtracted from it.
        loss: `forget_loss` or `depoison_loss`.
        stop: Stop early: for whole classes when no forget sample is recognised any more, else when the accuracy on
            `task.validation` exceeds that on forget samples; of the last two epochs the nearer one counts.
        last: For depoisoning, how the last layer may move within its space.

    Source: arXiv 2312.04095, with the loss that its text and code mean.
    """
    new = copy.deepcopy(model)
    if cache is None:
        spaces = Cache.of(model, task.retain).spaces(gamma, criterion)
    else:
        spaces = cache.without(collect(model, layers(model, "all"), task.forget.x)).spaces(gamma, criterion)
    projected = Projected(new, spaces)
    inner = last.attach(new, spaces) if last is not None else []
    generator = torch.Generator().manual_seed(seed)
    held = task.validation
    if stop and not task.classes and held is None:
        raise ValueError("to know when to stop, PGU needs unseen samples (task.validation), or stop = False")
    before: tuple[float, dict[str, Tensor]] | None = None
    with evaluating(new):  # batch norm's statistics are the retained data's; they stay
        for epoch in range(epochs):
            rate = lr * (lr_last / lr) ** (epoch / max(1, epochs - 1))
            for index in batches(len(task.forget), batch, generator):
                out = new(on(new, task.forget.x[index]))
                moving = projected.parameters
                wanted = [*moving, *inner]
                gradients = torch.autograd.grad(loss(out, on(new, task.forget.y[index])), wanted, allow_unused=True)
                steps = [g if g is not None else torch.zeros_like(p) for g, p in zip(gradients, wanted, strict=True)]
                with torch.no_grad():
                    for p, g in zip(moving, projected.project(steps[: len(moving)]), strict=True):
                        p.sub_(rate * g)
                    for p, g in zip(inner, steps[len(moving) :], strict=True):
                        p.sub_(rate / 10 * g)
            if not all(torch.isfinite(p).all() for p in projected.parameters):
                raise ValueError(f"PGU diverged: lower the learning rate ({lr})")
            if stop:
                found = accuracy(new, task.forget)
                gap = found - (0.0 if task.classes or held is None else accuracy(new, held))
                state = {k: v.clone() for k, v in new.state_dict().items()}
                if gap <= 0:
                    if before is not None and abs(before[0]) < abs(gap):
                        new.load_state_dict(before[1])
                    break
                before = gap, state
    if last is not None:
        last.bake(new)
    return new.eval()


class Recombined:
    """TRGP's freedom for the last layer: `W_eff = W + W S (Q − I) Sᵀ`, `S` its retained basis.

    `Q` is the identity but for a learnable block on the last `min(k, size)` directions.
    """

    def __init__(self, size: int = 400) -> None:
        self.size = size
        self.block: nn.Parameter | None = None

    def attach(self, model: nn.Module, spaces: dict[str, list[Tensor]]) -> list[nn.Parameter]:
        """Let the last layer use `W_eff`; returns what is learnt."""
        layer = layers(model, "last")[0]
        self.S = spaces[layer.name][0][:, -self.size :].to(layer.weight)
        self.block = nn.Parameter(torch.eye(self.S.shape[1]).to(layer.weight))
        self.handle = layer.module.register_forward_hook(self._hook)
        return [self.block]

    def _hook(self, module: Any, args: Any, output: Tensor) -> Tensor:
        assert self.block is not None
        eye = torch.eye(len(self.block)).to(self.block)
        return output + F.linear(args[0] @ self.S @ (self.block - eye).T @ self.S.T, module.weight)

    @torch.no_grad()
    def bake(self, model: nn.Module) -> None:
        """Write `W_eff` into the weight."""
        self.handle.remove()
        assert self.block is not None
        layer = layers(model, "last")[0]
        eye = torch.eye(len(self.block)).to(self.block)
        layer.weight.add_(layer.weight @ self.S @ (self.block - eye) @ self.S.T)


def incremental(model: nn.Module, tasks: Sequence[Task], cache: Cache, **options: Any) -> tuple[nn.Module, Cache]:
    """Forget task after task; what is left of the cache is the next one's, and nothing retained is read again.

    The first tasks' edits move features a little, so later caches are those of the original network's features less
    what was deleted, as in the paper.
    """
    for task in tasks:
        gone = collect(model, layers(model, "all"), task.forget.x)
        model = pgu(model, task, cache=cache, **options)
        cache = cache.without(gone)
    return model, cache


def depoison(model: nn.Module, task: Task, **options: Any) -> nn.Module:
    """Unlearn wrongly labelled samples: doubt their label, let the last layer recombine (TRGP)."""
    return pgu(model, task, **{"loss": depoison_loss, "stop": False, "last": Recombined(), "epochs": 30, **options})
