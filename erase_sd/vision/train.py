"""The loops that gradient methods share: mini-batches by seed, SGD, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from erase_sd.vision.layers import evaluating, place
from erase_sd.vision.task import Samples


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of shuffled mini-batches; the last may be smaller, but not a single sample (batch norm fails on it)."""
    order = torch.randperm(count, generator=generator)
    start = 0
    while start < count:
        stop = start + size
        if count - stop == 1:
            stop = count
        yield order[start:stop]
        start = stop


def on(model: nn.Module, x: Tensor) -> Tensor:
    """Inputs where the model is, in its dtype."""
    device, dtype = place(model)
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor, *, batch: int = 512) -> Tensor:
    """`(n, classes)` float32 on the CPU, in evaluation mode."""
    with evaluating(model):
        parts = [model(on(model, part)).float().cpu() for part in x.split(batch)]
    return torch.cat(parts) if parts else torch.zeros(0, 1)


def accuracy(model: nn.Module, samples: Samples) -> float:
    """Share of right answers in per cent; NaN without samples."""
    if not len(samples):
        return math.nan
    return 100 * float((logits(model, samples.x).argmax(1) == samples.y).float().mean())


def sgd(
    model: nn.Module,
    samples: Samples,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    epochs: int,
    lr: float,
    batch: int = 256,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
    parameters: Sequence[nn.Parameter] | None = None,
    schedule: Callable[[float], float] = lambda progress: 1.0,
    relabel: Callable[[int], Tensor] | None = None,
    after_step: Callable[[Any], None] | None = None,
    after_epoch: Callable[[int], bool] | None = None,
    train_mode: bool = True,
    augment: bool = False,
    desc: str = "",
) -> nn.Module:
    """Train a model in place.

    Args:
        model: What to train.
        samples: On what.
        loss: Of `(logits, labels, inputs)`; add what it likes of the model.
        epochs: Passes.
        lr: Learning rate, times `schedule(progress in 0..1)`.
        batch: Samples a step.
        momentum: Of SGD.
        weight_decay: Of SGD.
        seed: Of the order.
        parameters: What moves; default: everything that wants a gradient.
        schedule: See `lr`.
        relabel: Labels of all samples for an epoch, instead of their own.
        after_step: Called with the optimizer after each step.
        after_epoch: Called with the epoch's number; True stops.
        train_mode: Whether batch norm and dropout train.
        augment: Random crops of 4 pixels and flips.
        desc: Of the progress bar, shown when it lasts over two seconds.
    """
    generator = torch.Generator().manual_seed(seed)
    moving = list(parameters) if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=lr, momentum=momentum, weight_decay=weight_decay)
    steps = max(1, epochs * math.ceil(len(samples) / batch))
    model.train(train_mode)
    bar = tqdm(total=steps, desc=desc or "training", unit="step", delay=2, leave=False)
    done = 0
    for epoch in range(epochs):
        labels = samples.y if relabel is None else relabel(epoch)
        for index in batches(len(samples), batch, generator):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(done / steps)
            x, y = samples.x[index], on(model, labels[index])
            x = on(model, augmented(x, generator) if augment else x)
            value = loss(model(x), y, x)
            if not torch.isfinite(value):
                raise ValueError(f"the loss became {float(value)}: lower the learning rate ({lr})")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            if after_step is not None:
                after_step(optimizer)
            done += 1
            bar.update()
        if after_epoch is not None and after_epoch(epoch):
            break
        model.train(train_mode)
    bar.close()
    for p in model.parameters():
        p.grad = None
    return model.eval()


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of images padded by 4, and flips."""
    n, _, h, w = x.shape
    padded = F.pad(x, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (n, 2), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    rows = shift[:, 0, None] + torch.arange(h)
    columns = torch.where(flip[:, None], torch.arange(w - 1, -1, -1), torch.arange(w)) + shift[:, 1, None]
    picked = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cross_entropy(out: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The usual loss, in float32."""
    return F.cross_entropy(out.float(), y)


def one_cycle(progress: float) -> float:
    """Linear warm-up over the first tenth, then cosine to zero."""
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
