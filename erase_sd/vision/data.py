"""Labelled images: scikit-learn's digits offline, local npz and folders, the Hub's tables."""

from __future__ import annotations

import importlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erase_sd.vision.hub import HUB, is_parquet_folder, tables
from erase_sd.vision.samples import Form, Pictures, decoded

# Data that other rooms hold: name to `module:function`.
EMBEDDED = {"emoji": "erase_sd.vision.embedded:scenes"}


@dataclass(frozen=True, eq=False)
class Data:
    """Training and test images with labels.

    Attributes:
        name: Where it is from.
        train_x: `(n, c, h, w)` float32, normalised; or `Pictures`.
        train_y: `(n,)` int64.
        test_x: Likewise.
        test_y: Likewise.
        classes: Names of the labels.
        train_fine: A finer name of each sample, if there are any.
        test_fine: Likewise.
    """

    name: str
    train_x: Tensor | Pictures
    train_y: Tensor
    test_x: Tensor | Pictures
    test_y: Tensor
    classes: tuple[str, ...]
    train_fine: tuple[str, ...] | None = None
    test_fine: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        parts = ((self.train_x, self.train_y, "training"), (self.test_x, self.test_y, "test"))
        for x, y, part in parts:
            if len(x) != len(y):
                raise ValueError(f"{self.name}: {len(x)} {part} images but {len(y)} labels")
            if isinstance(x, Tensor) and not torch.isfinite(x).all():
                raise ValueError(f"{self.name}: the {part} images hold NaN or infinite values")
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.classes):
                raise ValueError(f"{self.name}: a label outside 0..{len(self.classes) - 1}")

    @property
    def channels(self) -> int:
        """Channels of an image."""
        x = self.train_x
        return x.channels if isinstance(x, Pictures) else int(x.shape[1])

    def numbered_as(self, names: Sequence[str]) -> Data:
        """The same samples, their labels the numbers that a model gives to these names.

        A model may know more classes than the data has. Capitals do not matter.

        Raises:
            ValueError: If a class has no such name, or several have the same.

        >>> import torch
        >>> two = torch.tensor([0, 1])
        >>> data = Data("d", torch.zeros(2, 1), two, torch.zeros(2, 1), two, ("cat", "dog"))
        >>> data.numbered_as(["Dog", "fox", "Cat"]).train_y.tolist()
        [2, 0]
        """
        known = [n.lower() for n in names]
        wanted = [c.lower() for c in self.classes]
        unknown = [c for c in wanted if known.count(c) != 1]
        if unknown:
            raise ValueError(
                f"expected classes that the model has, got {unknown[0]!r}; it has "
                f"{', '.join(list(names)[:10])}{', …' * (len(names) > 10)}"
            )
        numbers = torch.tensor([known.index(c) for c in wanted])
        labels = numbers[self.train_y], numbers[self.test_y]
        return replace(self, train_y=labels[0], test_y=labels[1], classes=tuple(names))


def load_data(where: str, *, size: int | None = None, processor: Any = None) -> Data:
    """Load a data set.

    Args:
        where: "digits" (scikit-learn's) or "emoji" (renders of the embedded world), both offline; a
            path to an `.npz`, to an image folder (`train/CLASS/*.png`, `test/CLASS/*.png`) or to a
            folder of parquet files as the Hub has them; a name in `HUB`, or any Hub id.
        size: Side to scale images to; None leaves them, or leaves it to the processor.
        processor: The image processor of a transformers model, see
            `erase_sd.vision.pretrained.processor_of`; None normalises by the data set's constants.

    Raises:
        ValueError: If it cannot be had, naming what was expected.

    >>> tuple(load_data("digits").train_x.shape)
    (1442, 1, 8, 8)
    """
    form = Form(size, processor)
    if where == "digits":
        if form != Form():
            raise ValueError("digits are 8 x 8 and grey: expected no size and no image processor")
        return _digits()
    if where in EMBEDDED:
        module, name = EMBEDDED[where].split(":")
        made: Data = getattr(importlib.import_module(module), name)(form=form)
        return made
    path = Path(where.partition("#")[0])
    if path.suffix == ".npz":
        return _npz(path, form)
    on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+(#\w+)?", where) and not path.exists()
    if where in HUB or on_hub or is_parquet_folder(path):
        return _tables(where, form)
    if path.is_dir():
        return _folder(path, form)
    raise ValueError(
        f"no data {where!r}: expected digits, emoji, an .npz, a folder of images or of parquet "
        f"files, a Hub id (OWNER/NAME), or one of {', '.join(HUB)}"
    )


def _digits() -> Data:
    """8 x 8 grey digits: 1,797 real handwritten ones.

    Every fifth of each class is a test sample.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images).float()[:, None] / 16
    y = torch.from_numpy(raw.target).long()
    order = torch.stack([torch.cumsum(y == c, 0) * (y == c) for c in range(10)]).sum(0)
    test = order % 5 == 0
    return Data("digits", x[~test], y[~test], x[test], y[test], tuple(str(c) for c in range(10)))


def _npz(path: Path, form: Form) -> Data:
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"cannot read {path}: missing, truncated or no .npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [k for k in keys if k not in file]
            if missing:
                raise ValueError(
                    f"{path} lacks {missing[0]}; expected {', '.join(keys)}, and classes if "
                    f"they have names"
                )
            held = {k: file[k] for k in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    labels = [torch.from_numpy(held[k].astype(np.int64)) for k in ("train_labels", "test_labels")]
    count = int(max(y.max() for y in labels)) + 1
    classes = tuple(str(c) for c in held.get("classes", np.arange(count)))
    fine = [tuple(map(str, held[k])) if k in held else None for k in ("train_nouns", "test_nouns")]
    x = [form.pictures(held[k], path.stem) for k in ("train_images", "test_images")]
    return Data(path.stem, x[0], labels[0], x[1], labels[1], classes, fine[0], fine[1])


def _folder(path: Path, form: Form) -> Data:
    classes = tuple(sorted(p.name for p in (path / "train").glob("*") if p.is_dir()))
    if not classes:
        raise ValueError(f"{path} holds no train/CLASS folders")
    x, y = [], []
    for split in ("train", "test"):
        there = {p.name for p in (path / split).glob("*") if p.is_dir()}
        if there - set(classes):
            raise ValueError(
                f"{path / split} has a class that train lacks: {sorted(there - set(classes))[0]}"
            )
        files = [
            (f, i) for i, c in enumerate(classes) for f in sorted((path / split / c).glob("*"))
        ]
        if not files:
            raise ValueError(f"{path / split} holds no images")
        x.append(form.pictures([f for f, _ in files], path.name, decoded))
        y.append(torch.tensor([i for _, i in files]))
    return Data(path.name, x[0], y[0], x[1], y[1], classes)


def _tables(where: str, form: Form) -> Data:
    parts, classes, decode = tables(where)
    name = where if where in HUB else Path(where.partition("#")[0]).name
    x = [form.pictures(part.images, name, decode) for part in parts]
    y, fine = [part.labels for part in parts], [part.fine for part in parts]
    return Data(name, x[0], y[0], x[1], y[1], classes, fine[0], fine[1])
