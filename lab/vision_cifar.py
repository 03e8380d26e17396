"""CIFAR-10 for docs/measured/vision.md: the public ResNet-20, edits of its last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from erase_sd.vision import Cache, Data, load_data, load_model, make_task, unlearn
from erase_sd.vision.embedded import scenes
from erase_sd.vision.metrics import penultimate
from erase_sd.vision.samples import NORMALISATION, Samples
from lab.page import table
from lab.vision_cases import Setting
from lab.vision_parts import LAST, PUBLISHED, Study
from lab.vision_report import markdown
from lab.vision_runs import headed
from lab.vision_siblings import siblings


def cifar(study: Study) -> str:
    """The public ResNet-20: edits of the last layer on all classes."""
    data, model = public(study, study.images)
    head, features, each = headed(model, data)
    setting = Setting(
        features, lambda seed: head, "cifar10", False, "resnet20 last layer", passes=each
    )
    ten = list(range(10))
    some: dict[str, Any] = {"classes": study.cifar}
    parts = [
        study.table(
            "CIFAR-10, ResNet-20, one class after another",
            "class-wise",
            setting,
            methods=LAST,
            classes=ten,
            published=True,
        ),
        study.classes_of("CIFAR-10, ResNet-20, one class after another", published=True),
    ]
    setting = replace(setting, probe=False)
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, directions, and Eq. 15 as printed", "ranks", setting, **some
        )
    )
    parts.append(
        study.table("CIFAR-10, ResNet-20, few samples", "shots", setting, published=True, **some)
    )
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, several classes",
            "multi-class",
            setting,
            methods=LAST[:3],
            published=True,
            **some,
        )
    )
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, forget samples from emoji scenes",
            "external",
            replace(setting, outside=drawn(model, data.classes), name="resnet20 last, emoji"),
            published=True,
            **some,
        )
    )
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, finer nouns",
            "subclass",
            setting,
            methods=LAST[:2],
            published=True,
            **some,
        )
    )
    gone, rows = siblings(head, features)
    title = f"CIFAR-10, ResNet-20, siblings of {gone}, which is forgotten"
    study.note(title, "siblings", rows, 0.0)
    told = f"### {title}\n\nAccuracy on each noun, %.\n\n"
    theirs = PUBLISHED["siblings"]
    columns = list(next(iter(theirs.values())))
    beside = table(["published", *columns], [[n, *v.values()] for n, v in theirs.items()])
    parts.append(f"{told}{markdown(rows)}\n\n{beside}\n")
    parts.append(_cached(head, features))
    return "\n".join(parts)


def public(study: Study, images: int) -> tuple[Data, nn.Module]:
    """A part of CIFAR-10, and the ResNet-20 that its author trained on all of it."""
    whole = load_data(str(study.data / "cifar10.npz"))
    data = whole
    if images < len(whole.train_y):
        data = part_of(whole, images)
    weights = study.data / "cifar10_resnet20.safetensors"
    return data, load_model(f"resnet20:{weights}", data.classes).eval()


# Objects of the embedded world that are a class of CIFAR-10.
OBJECTS = {"airplane": "airplane", "automobile": "car", "cat": "cat", "dog": "dog", "frog": "frog"}
OBJECTS |= {"horse": "horse", "ship": "sailboat", "truck": "truck"}


def drawn(model: nn.Module, classes: Sequence[str], count: int = 20) -> Data:
    """What a network's last layer reads on emoji scenes of its classes: another data set."""
    world = scenes(count, 1)
    numbers = {world.classes.index(OBJECTS[c]): i for i, c in enumerate(classes) if c in OBJECTS}
    mean, std = (torch.tensor(v)[:, None, None] for v in NORMALISATION["cifar10"])
    parts = []
    for x, y in ((world.train_x, world.train_y), (world.test_x, world.test_y)):
        ours = torch.nonzero(torch.tensor([int(n) in numbers for n in y]))[:, 0]
        pictures = x[ours] / 2 + 0.5  # they are centred on a half, and halved
        small = F.interpolate(pictures, (32, 32), mode="bilinear", antialias=True)
        labels = torch.tensor([numbers[int(n)] for n in y[ours]])
        parts.append((penultimate(model, (small - mean) / std), labels))
    return Data("emoji scenes", *parts[0], *parts[1], tuple(classes))


def part_of(data: Data, count: int) -> Data:
    """A random part of the training samples, and half as many test samples."""
    generator = torch.Generator().manual_seed(0)
    few, test = (
        torch.randperm(len(y), generator=generator)[:n].sort().values
        for y, n in ((data.train_y, count), (data.test_y, count // 2))
    )
    fine = []
    for names, index in ((data.train_fine, few), (data.test_fine, test)):
        fine.append(tuple(names[i] for i in index.tolist()) if names else None)
    return Data(
        data.name,
        data.train_x[few],
        data.train_y[few],
        data.test_x[test],
        data.test_y[test],
        data.classes,
        *fine,
    )


def _cached(head: nn.Module, data: Data) -> str:
    """Time of the default's edit, given features and the moment of the training set."""
    task = make_task(data, "class:3")
    kept = Cache.of(head, Samples(data.train_x, data.train_y))
    times = []
    for _ in range(20):
        times.append(1e3 * unlearn(head, task, cache=kept).seconds)
    return (
        "The default's edit, from the forget samples' features and the training set's "
        "cached moment: "
        f"{np.median(times):.1f} ms (median of 20)."
    )
