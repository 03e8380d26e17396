"""Gradient methods to compare with; each takes a model and a task and returns a new model.

The common loop is that of SalUn's code: SGD, learning rate 0.01, momentum 0.9, weight decay 5e-4, 10 epochs of
batches of 256. Presets per data and architecture stand in `erase_sd.vision.PRESETS`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from erase_sd.vision.layers import evaluating, layers
from erase_sd.vision.task import Samples, Task
from erase_sd.vision.train import batches, cross_entropy, logits, on, one_cycle, sgd


def _joined(a: Samples, b: Samples) -> Samples:
    return Samples(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]))


def _moving(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def gradient(model: nn.Module, samples: Samples, *, batch: int = 256, labels: Tensor | None = None) -> list[Tensor]:
    """Gradient of the mean cross entropy over samples, in evaluation mode, one tensor for each parameter."""
    total = [torch.zeros_like(p) for p in _moving(model)]
    y = samples.y if labels is None else labels
    with evaluating(model), torch.enable_grad():
        for index in torch.arange(len(samples)).split(batch):
            loss = F.cross_entropy(model(on(model, samples.x[index])).float(), on(model, y[index]), reduction="sum")
            for t, g in zip(total, torch.autograd.grad(loss, _moving(model)), strict=True):
                t += g / len(samples)
    return total


def retrain(
    model: nn.Module, task: Task, *, epochs: int = 100, lr: float = 0.1, batch: int = 128, seed: int = 0,
    augment: bool = False, **_: Any,
) -> nn.Module:  # fmt: skip
    """Train anew on what is retained: the reference for all others.

    Raises:
        ValueError: If a module cannot reset its parameters.
    """
    new = reset(copy.deepcopy(model), seed=seed)
    return sgd(new, task.retain, cross_entropy, epochs=epochs, lr=lr, batch=batch, seed=seed, schedule=one_cycle,
               augment=augment, desc="retraining")  # fmt: skip


def reset(model: nn.Module, names: Sequence[str] | None = None, *, seed: int = 0) -> nn.Module:
    """Give modules (all, or some by name) fresh parameters, in place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            if names is not None and name not in names:
                continue
            if any(True for _ in module.parameters(recurse=False)):
                if not hasattr(module, "reset_parameters"):
                    raise ValueError(f"{name} ({type(module).__name__}) cannot reset its parameters")
                module.reset_parameters()
    return model


def finetune(model: nn.Module, task: Task, *, epochs: int = 10, lr: float = 0.01, seed: int = 0, **_: Any) -> nn.Module:
    """FT: cross entropy on what is retained."""
    return sgd(copy.deepcopy(model), task.retain, cross_entropy, epochs=epochs, lr=lr, seed=seed)


def gradient_ascent(
    model: nn.Module, task: Task, *, epochs: int = 5, lr: float = 1e-4, seed: int = 0, **_: Any
) -> nn.Module:
    """GA: minus the cross entropy on what is forgotten."""
    return sgd(copy.deepcopy(model), task.forget, lambda o, y, x: -cross_entropy(o, y, x), epochs=epochs, lr=lr,
               seed=seed)  # fmt: skip


def random_label(
    model: nn.Module, task: Task, *, epochs: int = 10, lr: float = 0.01, seed: int = 0,
    keep: list[Tensor] | None = None, **_: Any,
) -> nn.Module:  # fmt: skip
    """RL: forget samples labelled anew at random in each epoch, together with the retained ones."""
    new, both = copy.deepcopy(model), _joined(task.forget, task.retain)
    generator = torch.Generator().manual_seed(seed + 1)

    def relabel(epoch: int) -> Tensor:
        labels = both.y.clone()
        labels[: len(task.forget)] = torch.randint(task.outputs, (len(task.forget),), generator=generator)
        return labels

    old = [p.detach().clone() for p in _moving(new)]

    @torch.no_grad()
    def restore(optimizer: Any) -> None:
        for p, o, m in zip(_moving(new), old, keep or [], strict=True):
            p.copy_(torch.where(m, p, o))
            buffer = optimizer.state[p].get("momentum_buffer")
            if buffer is not None:
                buffer.mul_(m)

    return sgd(new, both, cross_entropy, epochs=epochs, lr=lr, seed=seed, relabel=relabel,
               after_step=restore if keep else None)  # fmt: skip


def saliency(model: nn.Module, task: Task, share: float) -> list[Tensor]:
    """SalUn's masks: the share of all weights with the largest gradient magnitude over the forget samples."""
    size = [g.abs() for g in gradient(model, task.forget)]
    flat = torch.cat([s.flatten() for s in size])
    bar = flat.kthvalue(max(1, round((1 - share) * len(flat)))).values if share < 1 else flat.min() - 1
    return [s > bar for s in size]


def salun(model: nn.Module, task: Task, *, share: float = 0.5, **options: Any) -> nn.Module:
    """Random labels, moving only the weights most salient for the forget samples. Source: arXiv 2310.12508."""
    return random_label(model, task, keep=saliency(model, task, share), **options)


def l1_sparse(
    model: nn.Module, task: Task, *, epochs: int = 10, lr: float = 0.01, gamma: float = 5e-5, seed: int = 0, **_: Any
) -> nn.Module:
    """Fine-tuning with an ℓ1 penalty that falls to zero. Source: arXiv 2304.04934."""
    new = copy.deepcopy(model)
    steps = max(1, -(-len(task.retain) // 256))
    done = [0]

    def loss(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
        epoch = done[0] // steps
        done[0] += 1
        return cross_entropy(out, y, x) + gamma * (1 - epoch / epochs) * sum(p.abs().sum() for p in _moving(new))

    return sgd(new, task.retain, loss, epochs=epochs, lr=lr, seed=seed)


def influence(
    model: nn.Module, task: Task, *, alpha: float = 10.0, samples: int = 1000, seed: int = 0, **_: Any
) -> nn.Module:
    """IU: `θ + α F⁻¹ (g_f − g_r) n_f / n` by WoodFisher's recursion over single retained gradients.

    Source: arXiv 2103.03279 as in SalUn's code; α in 1…20.
    """
    new = copy.deepcopy(model)
    share = len(task.forget) / (len(task.forget) + len(task.retain))

    def flat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([p.flatten() for p in parts])

    k = share * (flat(gradient(new, task.forget)) - flat(gradient(new, task.retain)))
    o: Tensor | None = None
    picked = task.retain.sample(samples + 1, seed)
    for i in range(len(picked)):
        g = flat(gradient(new, picked[torch.tensor([i])]))
        if o is None:
            o = g.clone()
            continue
        t = o @ g
        k = k - (k @ g) / (samples + t) * o
        o = o - t / (samples + t) * o
    with torch.no_grad():
        for p, step in zip(_moving(new), _unflat(k, _moving(new)), strict=True):
            p.add_(alpha * step)
    return new


def _unflat(vector: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    start = 0
    for t in like:
        yield vector[start : start + t.numel()].view_as(t)
        start += t.numel()


def boundary_expanding(
    model: nn.Module, task: Task, *, epochs: int = 10, lr: float = 0.01, seed: int = 0, **_: Any
) -> nn.Module:
    """BE: one more output that takes the forget samples, cut off afterwards. Source: arXiv 2303.11570."""
    new = copy.deepcopy(model)
    last = layers(new, "last")[0]
    old: Any = last.module
    if not isinstance(old, nn.Linear) or old.out_features != task.outputs:
        raise ValueError(f"{last.name} does not give one output for each class: nothing to expand")
    wide = nn.Linear(old.in_features, old.out_features + 1, bias=old.bias is not None).to(old.weight)
    with torch.no_grad():
        wide.weight[:-1], wide.weight[-1] = old.weight, old.weight.mean(0)
        if old.bias is not None:
            wide.bias[:-1], wide.bias[-1] = old.bias, old.bias.mean()
    _replace(new, last.name, wide)
    shadow = Samples(task.forget.x, torch.full_like(task.forget.y, old.out_features))
    new = sgd(new, shadow, cross_entropy, epochs=epochs, lr=lr, seed=seed)
    narrow = copy.deepcopy(old)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:-1])
        if old.bias is not None:
            narrow.bias.copy_(wide.bias[:-1])
    _replace(new, last.name, narrow)
    return new


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def boundary_shrink(
    model: nn.Module, task: Task, *, epochs: int = 10, lr: float = 0.01, bound: float = 0.1, seed: int = 0, **_: Any
) -> nn.Module:
    """BS: forget samples take the label of the nearest other class, found by one signed gradient step.

    Source: arXiv 2303.11570, `x' = x + 0.1 sign ∇ CE` (inputs are normalised here, so nothing is clamped but to
    their own range).
    """
    low, high = float(task.forget.x.min()), float(task.forget.x.max())
    near = []
    with evaluating(model):
        for index in torch.arange(len(task.forget)).split(256):
            x = on(model, task.forget.x[index]).requires_grad_(True)
            loss = F.cross_entropy(model(x).float(), on(model, task.forget.y[index]))
            (g,) = torch.autograd.grad(loss, x)
            near.append(logits(model, (x.detach() + bound * g.sign()).clamp(low, high).cpu()).argmax(1))
    return sgd(copy.deepcopy(model), Samples(task.forget.x, torch.cat(near)), cross_entropy, epochs=epochs, lr=lr,
               seed=seed)  # fmt: skip


def importances(model: nn.Module, samples: Samples, *, batch: int = 64) -> list[Tensor]:
    """Mean squared gradient of mini-batches: SSD's diagonal Fisher."""
    total = [torch.zeros_like(p) for p in _moving(model)]
    parts = torch.arange(len(samples)).split(batch)
    for index in parts:
        for t, g in zip(total, gradient(model, samples[index]), strict=True):
            t += g.square() / len(parts)
    return total


@torch.no_grad()
def ssd(model: nn.Module, task: Task, *, alpha: float = 10.0, dampening: float = 1.0, **_: Any) -> nn.Module:
    """Selective synaptic dampening: where `I_f > α I_D`, `θ ← θ min(λ I_D / I_f, 1)`. Source: arXiv 2308.07707."""
    new = copy.deepcopy(model)
    of_forget = importances(model, task.forget)
    of_all = importances(model, _joined(task.forget, task.retain))
    for p, f, d in zip(_moving(new), of_forget, of_all, strict=True):
        factor = (dampening * d / f.clamp(min=1e-30)).clamp(max=1)
        p.copy_(torch.where(f > alpha * d, p * factor, p))
    return new


def jit(
    model: nn.Module, task: Task, *, lr: float = 1e-3, noise: float = 0.8, draws: int = 25, epochs: int = 1,
    batch: int = 64, seed: int = 0, **_: Any,
) -> nn.Module:  # fmt: skip
    """Just in time: make the function smooth around forget samples. Source: arXiv 2402.01401; zero-shot.

    Minimises `‖f(x) − sg f(x + e)‖ / ‖e‖` over Gaussian draws `e`.
    """
    new = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)

    def loss(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
        total = out.new_zeros(())
        for _draw in range(draws):
            e = noise * torch.randn(x.shape, generator=generator).to(x)
            with torch.no_grad():
                moved = new(x + e)
            total = total + ((out - moved).flatten(1).norm(dim=1) / e.flatten(1).norm(dim=1)).mean() / draws
        return total

    return sgd(new, task.forget, loss, epochs=epochs, lr=lr, batch=batch, seed=seed, train_mode=False)


def scrub(
    model: nn.Module, task: Task, *, epochs: int = 3, forget_epochs: int = 2, lr: float = 5e-4, alpha: float = 1e-3,
    gamma: float = 0.99, temperature: float = 4.0, seed: int = 0, **_: Any,
) -> nn.Module:  # fmt: skip
    """SCRUB: away from the original on what is forgotten, towards it and the labels on the rest.

    Source: arXiv 2302.09880.
    """
    new, teacher = copy.deepcopy(model), copy.deepcopy(model).eval()

    def divergence(out: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            told = F.log_softmax(teacher(x).float() / temperature, 1)
        mine = F.log_softmax(out.float() / temperature, 1)
        return F.kl_div(mine, told, reduction="batchmean", log_target=True) * temperature**2

    for epoch in range(epochs):
        if epoch < forget_epochs:
            sgd(new, task.forget, lambda o, y, x: -divergence(o, x), epochs=1, lr=lr, batch=64, seed=seed + epoch)
        sgd(new, task.retain, lambda o, y, x: gamma * cross_entropy(o, y, x) + alpha * divergence(o, x),
            epochs=1, lr=lr, batch=64, seed=seed + epoch)  # fmt: skip
    return new.eval()


def eu_k(
    model: nn.Module, task: Task, *, k: int = 1, epochs: int = 10, lr: float = 0.01, seed: int = 0, **_: Any
) -> nn.Module:
    """EU-k: the last k layers fresh, and trained on what is retained; the rest frozen. Source: arXiv 2201.06640."""
    new = copy.deepcopy(model)
    chosen = layers(new, "all")[-k:]
    reset(new, [y.name for y in chosen], seed=seed)
    moving = [p for y in chosen for p in y.module.parameters()]
    # In evaluation mode: training mode would move the frozen layers' batch statistics.
    return sgd(new, task.retain, cross_entropy, epochs=epochs, lr=lr, seed=seed, parameters=moving, train_mode=False)


def ntk(
    model: nn.Module, task: Task, *, samples: int = 200, ridge: float = 1.0, iterations: int = 50, seed: int = 0,
    **_: Any,
) -> nn.Module:  # fmt: skip
    """Linearised forgetting: what the tangent model's weights would change if the forget samples had not been there.

    `Δ = w(D_r) − w(D)`, both ridge regressions of the one-hot residuals onto the Jacobian at the current weights, in
    dual form by conjugate gradients: the Jacobian is only ever multiplied, never stored.
    Source: arXiv 2003.02960, Eq. 8-10.
    """
    new = copy.deepcopy(model)
    named = {n: p.detach() for n, p in new.named_parameters() if p.requires_grad}
    forget, retain = task.forget.sample(samples, seed), task.retain.sample(samples, seed)

    def solution(part: Samples) -> dict[str, Tensor]:
        x = on(new, part.x)

        def f(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(new, weights, (x,)).float()

        with evaluating(new):
            out, pull, *_none = vjp(f, named)
            residual = F.one_hot(on(new, part.y), out.shape[1]).float() - out.softmax(1)

            def kernel(a: Tensor) -> Tensor:
                return jvp(f, (named,), (pull(a)[0],))[1] / len(part) + ridge * a

            a, r = torch.zeros_like(residual), residual.clone()
            d, size = r.clone(), r.square().sum()
            for _step in range(iterations):
                Kd = kernel(d)
                step = size / (d * Kd).sum()
                a, r = a + step * d, r - step * Kd
                new_size = r.square().sum()
                if new_size < 1e-10 * residual.square().sum():
                    break
                d, size = r + new_size / size * d, new_size
            return {n: g / len(part) for n, g in pull(a)[0].items()}

    kept, all_ = solution(retain), solution(_joined(forget, retain))
    with torch.no_grad():
        for n, p in new.named_parameters():
            if n in kept:
                p.add_(kept[n] - all_[n])
    return new


def first_order(model: nn.Module, task: Task, *, tau: float = 1e-2, **_: Any) -> nn.Module:
    """One step that undoes the forget samples' gradients: `θ − τ v`, `v = −Σ ∇ℓ(z_f)`. Source: arXiv 2108.11577."""
    new = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(_moving(new), _forget_sum(new, task), strict=True):
            p.add_(tau * g)
    return new


def _forget_sum(model: nn.Module, task: Task) -> list[Tensor]:
    return [g * len(task.forget) for g in gradient(model, task.forget)]


def second_order(
    model: nn.Module, task: Task, *, tau: float = 1.0, damping: float = 0.1, scale: float = 50.0, iterations: int = 30,
    batch: int = 256, seed: int = 0, **_: Any,
) -> nn.Module:  # fmt: skip
    """The same through the inverse Hessian of the retained loss, by LiSSA: `h ← v + h − (H + δ) h / s`.

    Source: arXiv 2108.11577; LiSSA arXiv 1602.03943.
    """
    new = copy.deepcopy(model)
    moving = _moving(new)
    v = [-g / (len(task.retain) + len(task.forget)) for g in _forget_sum(new, task)]
    h = [t.clone() for t in v]
    generator = torch.Generator().manual_seed(seed)
    with evaluating(new):
        for _step in range(iterations):
            index = next(batches(len(task.retain), batch, generator))
            loss = cross_entropy(new(on(new, task.retain.x[index])), on(new, task.retain.y[index]), v[0])
            first = torch.autograd.grad(loss, moving, create_graph=True)
            along = sum((g * t).sum() for g, t in zip(first, h, strict=True))
            product = torch.autograd.grad(along, moving)  # type: ignore[arg-type]
            h = [a + b - (c + damping * b) / scale for a, b, c in zip(v, h, product, strict=True)]
            if not all(torch.isfinite(t).all() for t in h):
                raise ValueError(f"LiSSA diverged: raise its scale ({scale})")
    with torch.no_grad():
        for p, t in zip(moving, h, strict=True):
            p.sub_(tau * t / scale)
    return new
