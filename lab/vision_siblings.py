"""Unlink's Table 3: accuracy of each of a class's finer nouns while one of them goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from erase_sd.vision import Data, make_task, unlearn
from erase_sd.vision.train import logits


def siblings(model: nn.Module, data: Data) -> tuple[str, list[dict[str, Any]]]:
    """The noun that goes, and a row for each method with a column for each sibling.

    The class with most nouns that have at least 30 training images, and six of its nouns. "Only
    siblings kept" shows the method as retained samples those of the siblings alone, as the paper's
    extension is shown those of one.

    Raises:
        ValueError: If no class has two such nouns.
    """
    assert data.train_fine is not None
    fine = np.array(data.train_fine)
    labels = data.train_y.numpy()
    often = {n for n, c in zip(*np.unique(fine, return_counts=True), strict=True) if c >= 30}
    by_class = [sorted({str(n) for n in fine[labels == c]} & often) for c in np.unique(labels)]
    names = max(by_class, key=len)[:6]
    if len(names) < 2:
        raise ValueError("no class has two nouns with at least 30 images: take more images")
    gone = names[0]
    task = make_task(data, f"subclass:{gone}")
    near = torch.tensor([f in names[1:] for f in data.train_fine])[torch.tensor(fine != gone)]
    kin = replace(task, retain=task.retain[near])
    plan: list[tuple[str, str, Any]] = [
        ("unlink", "unlink", task),
        ("rayleigh", "rayleigh", task),
        ("rayleigh, only siblings kept", "rayleigh", kin),
        ("gf", "gf", task),
        ("ssd", "ssd", task),
        ("ga", "ga", task),
    ]
    models = [("original", model)] + [(n, unlearn(model, t, m).model) for n, m, t in plan]
    rows = []
    for name, net in models:
        right = (logits(net, data.train_x).argmax(1) == data.train_y).numpy()
        mean = {n: 100 * float(right[fine == n].mean()) for n in names}
        mean["all others"] = 100 * float(right[~np.isin(fine, names)].mean())
        rows.append({"row": name, "runs": 1, "failed": 0, "mean": mean, "std": {}, "why": ""})
    return gone, rows
