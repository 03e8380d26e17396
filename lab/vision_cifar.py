"""CIFAR-10 for docs/measured/vision.md: the public ResNet-20, and one trained here."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from erase_sd.vision import Cache, Data, Recipe, load_data, load_model, make_task, unlearn
from erase_sd.vision.models import trained
from erase_sd.vision.samples import Samples
from erase_sd.vision.train import Loop
from lab.page import table
from lab.vision_cases import Setting
from lab.vision_parts import LAST, Study
from lab.vision_presets import preset_of
from lab.vision_tables import headed


def cifar(study: Study) -> str:
    """The public ResNet-20: edits of the last layer on all classes."""
    data, model = _public(study, study.images)
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
            published="class-wise",
        )
    ]
    setting = replace(setting, probe=False)
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, directions, and Eq. 15 as printed", "ranks", setting, **some
        )
    )
    parts.append(
        study.table("CIFAR-10, ResNet-20, few samples", "shots", setting, published="shots", **some)
    )
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, several classes",
            "multi-class",
            setting,
            methods=LAST[:3],
            published="multi-class",
            **some,
        )
    )
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, external samples",
            "external",
            setting,
            published="external",
            **some,
        )
    )
    parts.append(
        study.table(
            "CIFAR-10, ResNet-20, finer nouns",
            "subclass",
            setting,
            methods=LAST[:2],
            published="subclass",
            **some,
        )
    )
    parts.append(_siblings(study, head, features))
    parts.append(_cached(head, features))
    return "\n".join(parts)


def _public(study: Study, images: int) -> tuple[Data, nn.Module]:
    whole = load_data(str(study.data / "cifar10.npz"))
    data = whole
    if images < len(whole.train_y):
        data = _some(whole, images)
    weights = study.data / "cifar10_resnet20.safetensors"
    return data, load_model(f"resnet20:{weights}", data.classes).eval()


def _some(data: Data, count: int) -> Data:
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


def _siblings(study: Study, head: nn.Module, data: Data) -> str:
    """Unlink's Table 3: accuracy of each of a class's finer nouns while one of them goes."""
    assert data.train_fine is not None
    fine = np.array(data.train_fine)
    labels = data.train_y.numpy()
    often = {n for n, c in zip(*np.unique(fine, return_counts=True), strict=True) if c >= 30}
    by_class = [sorted({str(n) for n in fine[labels == c]} & often) for c in range(10)]
    names = max(by_class, key=len)[:6]
    if len(names) < 2:
        raise ValueError("no class has two nouns with at least 30 images: take more --images")
    gone = names[0]
    task = make_task(data, f"subclass:{gone}")
    near = torch.tensor([f in names[1:] for f in data.train_fine])[torch.tensor(fine != gone)]
    sibling = replace(task, retain=task.retain[near])
    rows = []
    cases: list[tuple[str, str, Any]] = [
        ("unlink", "unlink", task),
        ("rayleigh", "rayleigh", task),
        ("rayleigh, only siblings kept", "rayleigh", sibling),
    ]
    models = [("original", head)] + [(n, unlearn(head, t, m).model) for n, m, t in cases]
    for name, model in models:
        with torch.no_grad():
            right = model(data.train_x[torch.arange(len(fine))]).argmax(1).numpy() == labels
        rows.append([name, *(f"{100 * right[fine == n].mean():.2f}" for n in names)])
        rows[-1].append(f"{100 * right[~np.isin(fine, names)].mean():.2f}")
    study.numbers["siblings"] = rows
    told = f"### CIFAR-10, ResNet-20, siblings of {gone}\n\nAccuracy on each noun, %.\n\n"
    return told + table(["method", *names, "all others"], rows) + "\n"


def frontier(study: Study) -> str:
    """A ResNet-20 trained here and Retrain by the same recipe: what relearning brings back."""
    classes, images = study.deep
    data, public = _public(study, images)
    shared = Setting(data, lambda seed: public, "cifar10", False, "resnet20 public")
    told = study.table("CIFAR-10, the public ResNet-20", "frontier", shared, classes=classes)
    told += "\n" + study.goals("CIFAR-10, the public ResNet-20", "two-sided, μ = 0.3")
    if not study.retrain:
        return (
            told
            + "\nRetrain was not trained in this run (`--no-retrain`): it takes hours of two cores."
        )
    recipe = Recipe(**{k: v for k, v in preset_of("retrain", "cifar10").items()})

    @cache
    def original(seed: int) -> nn.Module:
        path = study.work / f"resnet20-original-{images}.state"
        return trained("resnet20", data, recipe, seed=seed, loop=Loop(resume=path, desc="original"))

    parts = [told]
    told = f"{recipe.epochs} epochs"
    own = Setting(data, original, "cifar10", True, "resnet20 cifar10", told)
    parts.append(
        study.table(
            f"CIFAR-10, ResNet-20 trained here for {told}, and Retrain by the same recipe",
            "frontier",
            own,
            classes=classes,
        )
    )
    return "\n".join(parts)
