"""A class goes from a classifier, and the other classes stay: what the second tab computes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from erase_sd.emoji.world import load_world
from erase_sd.vision import METHODS, Data, load_data, load_model, make_task, measure, unlearn
from erase_sd.vision.embedded import scenes
from erase_sd.vision.models import trained
from erase_sd.vision.train import Recipe, logits

NETWORKS = {
    "mlp": "handwritten digits, a two-layer network trained here in seconds",
    "cnn": "handwritten digits, a small convolutional network trained here in seconds",
    "emoji-clip": "objects of the embedded world, zero-shot CLIP, on few scenes of each",
}
# Those that need no training and no search: an answer in a second.
QUICK = {
    n: m.summary
    for n, m in METHODS.items()
    if m.kind in ("closed-form", "trivial") and n not in ("gf", "unlink-below")
}


@dataclass(frozen=True)
class Outcome:
    """What forgetting a class did.

    Attributes:
        numbers: UA, RA, TA and MIA before and after, per cent.
        classes: Name, accuracy before and after on test samples, 0..1.
        pictures: Test samples with what they are taken for, before and, where it changed, after.
        seconds: Run time of the method.
        command: The same on the command line.
    """

    numbers: dict[str, dict[str, float]]
    classes: list[tuple[str, float, float]]
    pictures: list[tuple[Image.Image, str]]
    seconds: float
    command: str


def class_names(name: str) -> list[str]:
    """The classes of a network.

    Raises:
        ValueError: If there is no such network.

    >>> class_names("mlp")[3]
    '3'
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    return list(load_world().names) if name == "emoji-clip" else [str(d) for d in range(10)]


def forget_class(name: str, label: str, method: str) -> Outcome:
    """Make a network forget a class; the original stays as it is for everybody else.

    Args:
        name: One of `NETWORKS`.
        label: One of its classes.
        method: One of `QUICK`.

    Raises:
        ValueError: If one of them is none.
    """
    if label not in class_names(name):
        raise ValueError(f"no class {label!r}; {name} has {', '.join(class_names(name))}")
    if method not in QUICK:
        raise ValueError(f"here are {', '.join(QUICK)}; `erase-concept vision` has all")
    model, data = _network(name)
    task = make_task(data, f"class:{label}")
    result = unlearn(model, task, method)
    before, after = (logits(net, data.test_x).argmax(1) for net in (model, result.model))
    first = task.classes[0]
    order = [first, *(c for c in range(len(data.classes)) if c != first)]
    return Outcome(
        {"before": _untouched(name, label), "after": measure(result.model, task)},
        [(data.classes[c], _hits(data, before, c), _hits(data, after, c)) for c in order],
        [_picture(data, before, after, i) for i in _samples(data, first)],
        result.seconds,
        _command(name, data.name, label, method),
    )


@cache
def _network(name: str) -> tuple[nn.Module, Data]:
    """The original network and its data, made once."""
    if name == "emoji-clip":
        data = scenes(16, 5)  # of each object: an answer in seconds
        return load_model(name, len(data.classes)), data
    data = load_data("digits")
    return trained(name, data, Recipe(epochs=20)), data


@cache
def _untouched(name: str, label: str) -> dict[str, float]:
    """Numbers of the original network."""
    model, data = _network(name)
    return measure(model, make_task(data, f"class:{label}"))


def _hits(data: Data, found: Tensor, label: int) -> float:
    """Share of a class's test samples that were recognised; `found` is `(n,)` class numbers."""
    return float((found[data.test_y == label] == label).float().mean())


def _samples(data: Data, label: int) -> list[int]:
    """Numbers of test samples to show: six of a class and six of others."""
    own = torch.nonzero(data.test_y == label)[:6, 0]
    others = torch.nonzero(data.test_y != label)[::7, 0][:6]
    return [*own.tolist(), *others.tolist()]


def _picture(data: Data, before: Tensor, after: Tensor, i: int) -> tuple[Image.Image, str]:
    x: Any = data.test_x[torch.tensor([i])][0]
    grey = (255 * (x - x.min()) / (x.max() - x.min()).clamp(min=1e-6)).byte()
    pixels = grey.permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    was, now = (data.classes[int(found[i])] for found in (before, after))
    return image.resize((128, 128), Image.Resampling.NEAREST), (
        was if was == now else f"{was}, now {now}"
    )


def _command(name: str, data: str, label: str, method: str) -> str:
    words = ["erase-concept", "vision", "unlearn", "--model", name]
    words += [] if name == "emoji-clip" else ["--train", "--epochs", "20"]
    return shlex.join([*words, "--data", data, "--forget", f"class:{label}", "--method", method])
