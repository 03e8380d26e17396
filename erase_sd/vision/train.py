"""Training: one recipe, one loop for every gradient method, resumable; accuracy and logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from erase_sd.vision.layers import evaluating, place
from erase_sd.vision.resume import Saved
from erase_sd.vision.samples import Pictures, Samples, at_once, augmented, portions

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the original and Retrain take the same.

    Attributes:
        epochs: Passes over the samples.
        lr: Highest learning rate.
        batch: Samples a step.
        optimizer: SGD, SGD with Nesterov's momentum, or Adam.
        momentum: Of SGD.
        weight_decay: Of either.
        schedule: "constant"; "one-cycle" (linear warm-up over a tenth, cosine to zero); "cosine";
            "steps" (a tenth after each of `milestones`); "exponential" (down to `lr_last` in the
            last epoch).
        lr_last: Of "exponential".
        milestones: Of "steps", as shares of the whole.
        augment: Random crops of images padded by 4 pixels, and flips.
        precision: "bfloat16" multiplies in it, on images laid out channels last; weights and steps
            stay float32. On processors that have units for it this halves the time.

    >>> Recipe(epochs=30, lr=0.1, schedule="steps").rate(0.6)
    0.01
    """

    epochs: int = 40
    lr: float = 0.05
    batch: int = 64
    optimizer: Literal["sgd", "nesterov", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["constant", "one-cycle", "cosine", "steps", "exponential"] = "one-cycle"
    lr_last: float = 5e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    augment: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1 or not self.lr > 0:
            raise ValueError(
                "expected epochs >= 0, batch >= 1 and lr > 0, "
                f"got {self.epochs}, {self.batch} and {self.lr}"
            )
        if self.optimizer not in ("sgd", "nesterov", "adam"):
            raise ValueError(f"expected sgd, nesterov or adam, got {self.optimizer!r}")
        if self.schedule not in ("constant", "one-cycle", "cosine", "steps", "exponential"):
            raise ValueError(f"no schedule {self.schedule!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"expected float32 or bfloat16, got {self.precision!r}")

    def rate(self, progress: float) -> float:
        """Learning rate at a share of the training, 0..1."""
        if self.schedule == "one-cycle":
            if progress < 0.1:
                return self.lr * progress / 0.1
            return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "steps":
            passed = sum(progress >= m for m in self.milestones)
            return float(self.lr / 10**passed)
        if self.schedule == "exponential":
            return float(self.lr * (self.lr_last / self.lr) ** progress)
        return self.lr

    def optimizer_for(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of some parameters."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.optimizer == "nesterov",
        )

    def told(self) -> str:
        """All of it in one line; what a subclass adds is no part of the recipe."""
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(Recipe))

    def answers(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits of a batch in the recipe's precision."""
        if self.precision == "float32":
            return model(x)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16):
            return model(x).float()


@dataclass(frozen=True, eq=False)
class Loop:
    """What a method adds to the loop.

    Attributes:
        parameters: What moves; None moves all that want a gradient.
        relabel: Labels of all samples for an epoch, instead of their own.
        after_step: Called with the optimizer after each step.
        train_mode: Whether batch norm and dropout train.
        resume: File that keeps the state after each epoch; a training cut off goes on from it.
        desc: Of the progress bar, shown when it lasts over two seconds.
    """

    parameters: Sequence[nn.Parameter] | None = None
    relabel: Callable[[int], Tensor] | None = None
    after_step: Callable[[Any], None] | None = None
    train_mode: bool = True
    resume: Path | None = None
    desc: str = "training"


def cross_entropy(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The usual loss, in float32."""
    return F.cross_entropy(out.float(), y)


def train(
    model: nn.Module,
    samples: Samples,
    recipe: Recipe,
    loss: Loss = cross_entropy,
    *,
    seed: int = 0,
    loop: Loop | None = None,
) -> nn.Module:
    """Train a model in place.

    Args:
        model: What to train.
        samples: On what.
        recipe: How.
        loss: Of `(logits, labels, inputs)`; add what it likes of the model.
        seed: Of the order and of the augmentation.
        loop: What else happens.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If the loss is no longer finite.

    >>> import torch
    >>> few = Samples(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> model = train(torch.nn.Linear(4, 2), few, Recipe(epochs=30, lr=0.5, batch=4))
    >>> accuracy(model, few)
    100.0
    """
    loop = loop or Loop()
    generator = torch.Generator().manual_seed(seed)
    moving = list(loop.parameters) if loop.parameters is not None else moving_parameters(model)
    optimizer = recipe.optimizer_for(moving)
    about = f"{recipe.told()}, seed {seed}, {len(samples)} samples"
    if recipe.precision == "bfloat16":
        laid_out(model, torch.channels_last)
    saved = Saved(loop.resume, about, model, optimizer, generator)
    start = saved.restore()
    per_epoch = math.ceil(len(samples) / recipe.batch)
    total = max(1, recipe.epochs * per_epoch)
    done = start * per_epoch
    most = at_once(samples.x, recipe.batch + 1)  # what `batches` may give
    bar = tqdm(total=total, initial=done, desc=loop.desc, unit="step", delay=2, leave=False)
    value = _valuing(model, samples, recipe, loss, generator)
    for epoch in range(start, recipe.epochs):
        model.train(loop.train_mode)
        labels = samples.y if loop.relabel is None else loop.relabel(epoch)
        for index in batches(len(samples), recipe.batch, generator):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(done / total)
            _step(optimizer, portions(index, most), labels, value, loop)
            done += 1
            bar.update()
        saved.keep(epoch + 1)
    bar.close()
    for p in model.parameters():
        p.grad = None
    return laid_out(model, torch.contiguous_format).eval()


def laid_out(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A model whose convolutions' weights lie in memory in this order; its values stay."""
    moved: nn.Module = cast(Any, model).to(memory_format=layout)  # its stubs do not know it
    return moved


def _valuing(
    model: nn.Module, samples: Samples, recipe: Recipe, loss: Loss, generator: torch.Generator
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss at some positions of the samples, for these labels of theirs."""

    def value(part: Tensor, y: Tensor) -> Tensor:
        picked = samples.x[part]
        x = on(model, augmented(picked, generator) if recipe.augment else picked)
        return _finite(loss(recipe.answers(model, x), on(model, y), x), recipe)

    return value


def _step(
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Tensor],
    labels: Tensor,
    value: Callable[[Tensor, Tensor], Tensor],
    loop: Loop,
) -> None:
    """One step down the mean over a batch, in one part unless the inputs are large."""
    whole = sum(len(part) for part in parts)
    optimizer.zero_grad(set_to_none=True)
    for part in parts:
        (value(part, labels[part]) * (len(part) / whole)).backward()
    optimizer.step()
    if loop.after_step is not None:
        loop.after_step(optimizer)


def _finite(value: Tensor, recipe: Recipe) -> Tensor:
    if not torch.isfinite(value):
        told = f"the loss became {float(value.detach())}"
        raise ValueError(f"{told}: lower the learning rate ({recipe.lr})")
    return value


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of shuffled mini-batches.

    The last may be smaller, but not a single sample (batch norm fails on it).
    """
    order = torch.randperm(count, generator=generator)
    start = 0
    while start < count:
        stop = start + size
        if count - stop == 1:
            stop = count
        yield order[start:stop]
        start = stop


def moving_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All that want a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def on(model: nn.Module, x: Tensor) -> Tensor:
    """Inputs where the model is, in its dtype."""
    device, dtype = place(model)
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor | Pictures) -> Tensor:
    """`(n, classes)` float32 on the CPU, in evaluation mode."""
    with evaluating(model):
        split = x.split(at_once(x, 512))
        parts = [model(on(model, part)).float().cpu() for part in split]
    return torch.cat(parts) if parts else torch.zeros(0, 1)


def accuracy(model: nn.Module, samples: Samples) -> float:
    """Share of right answers in per cent; NaN without samples."""
    if not len(samples):
        return math.nan
    return 100 * float((logits(model, samples.x).argmax(1) == samples.y).float().mean())


def gradient(model: nn.Module, samples: Samples) -> list[Tensor]:
    """Gradient of the mean cross entropy over samples, in evaluation mode.

    One tensor for each parameter.
    """
    moving = moving_parameters(model)
    total = [torch.zeros_like(p) for p in moving]
    with evaluating(model), torch.enable_grad():
        for index in torch.split(torch.arange(len(samples)), at_once(samples.x, 256)):
            out = model(on(model, samples.x[index])).float()
            loss = F.cross_entropy(out, on(model, samples.y[index]), reduction="sum")
            found = torch.autograd.grad(loss, moving, allow_unused=True, materialize_grads=True)
            for t, g in zip(total, found, strict=True):
                t += g / len(samples)
    return total
