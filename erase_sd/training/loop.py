"""The one loop of all trained methods: steps, a bar that says how long, a state to resume from."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erase_sd.models.files import atomic_path
from erase_sd.processes import Share
from erase_sd.training.lesson import Lesson, Options

SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class History:
    """How a training went.

    Attributes:
        losses: Of every step, over all its sittings.
        seconds: Of all sittings together.
        memory: Largest memory of a CUDA device in this sitting, bytes; None elsewhere.
    """

    losses: tuple[float, ...]
    seconds: float
    memory: int | None


def generator_of(seed: int, step: int, process: int = 0) -> torch.Generator:
    """All randomness of one step; on the CPU, so that every device sees the same numbers.

    Args:
        seed: Of the training.
        step: Which.
        process: Of several, which each see other samples.

    >>> torch.rand(1, generator=generator_of(0, 1)) == torch.rand(1, generator=generator_of(0, 1))
    tensor([True])
    """
    told = f"{seed} {step}" + (f" {process}" if process else "")
    digest = hashlib.sha256(told.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def train(
    lesson: Lesson,
    options: Options,
    *,
    seed: int = 0,
    about: str = "",
    state: Path | None = None,
    save_every: float = SAVE_EVERY,
    share: Share | None = None,
) -> History:
    """Train, or go on with it; an interrupted training ends where an uninterrupted one does.

    Several processes each compute a step's loss on samples of their own and move by the mean of
    their gradients; the first keeps the state.

    Args:
        lesson: What moves, and by which loss.
        options: Steps and learning rate.
        seed: Of every step's randomness.
        about: What is trained; a state of something else is refused.
        state: File to keep it in; None keeps nothing.
        save_every: Seconds between two states.
        share: This process's part; default: all of it.

    Raises:
        ValueError: If the state is another training's.
        RuntimeError: If the loss is no longer a number.
    """
    share = share or Share()
    state_here = state if share.process == 0 else None
    values = list(lesson.parameters.values())
    optimizer = torch.optim.AdamW(values, lr=options.lr, weight_decay=lesson.weight_decay)
    losses, before = _resume(state, about, lesson, optimizer)
    start = saved = time.monotonic()
    bar = tqdm(
        range(len(losses), options.steps), initial=len(losses), total=options.steps,
        desc="training", unit="step", disable=share.process > 0,
    )  # fmt: skip
    try:
        for step in bar:
            generator = generator_of(seed, step, share.process)
            losses.append(_step(lesson, optimizer, generator, share))
            bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
            if not math.isfinite(losses[-1]):
                told = f"lower the learning rate ({options.lr:g})"
                raise RuntimeError(f"the loss became {losses[-1]} at step {step + 1}; {told}")
            now = time.monotonic()
            if state_here is not None and now - saved >= save_every:
                _save(state_here, about, lesson, optimizer, losses, before + now - start)
                saved = now
    finally:
        bar.close()
    seconds = before + time.monotonic() - start
    if state_here is not None:
        _save(state_here, about, lesson, optimizer, losses, seconds)
    return History(tuple(losses), seconds, _memory(values))


def _step(
    lesson: Lesson, optimizer: torch.optim.Optimizer, generator: torch.Generator, share: Share
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = lesson.loss(generator)
    loss.backward()
    for p in lesson.parameters.values():
        if p.grad is not None:
            p.grad = share.mean(p.grad)
    for name, mask in lesson.masks.items():
        gradient = lesson.parameters[name].grad
        if gradient is not None:
            gradient *= mask
    if lesson.clip is not None:
        torch.nn.utils.clip_grad_norm_(list(lesson.parameters.values()), lesson.clip)
    optimizer.step()
    return float(share.mean(loss.detach()))


def _save(
    path: Path,
    about: str,
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    seconds: float,
) -> None:
    """Write everything; a kill in between leaves the last state."""
    content: dict[str, Any] = {"about": about, "losses": losses, "seconds": seconds}
    content["parameters"] = {n: p.detach() for n, p in lesson.parameters.items()}
    content["optimizer"] = optimizer.state_dict()
    with atomic_path(path, force=True) as draft:
        torch.save(content, draft)


def _resume(
    path: Path | None, about: str, lesson: Lesson, optimizer: torch.optim.Optimizer
) -> tuple[list[float], float]:
    """The losses and seconds of what is done already; the parameters as it left them."""
    if path is None or not path.is_file():
        return [], 0.0
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["about"] != about:
        told = f"expected {about}, got {state['about']}"
        raise ValueError(f"{path} is another training's: {told}; remove it or choose another --out")
    kept: Mapping[str, Tensor] = state["parameters"]
    with torch.no_grad():
        for name, p in lesson.parameters.items():
            p.copy_(kept[name])
    optimizer.load_state_dict(state["optimizer"])
    return list(state["losses"]), float(state["seconds"])


def _memory(values: list[Any]) -> int | None:
    on_cuda = values and values[0].device.type == "cuda"
    return int(torch.cuda.max_memory_allocated(values[0].device)) if on_cuda else None
