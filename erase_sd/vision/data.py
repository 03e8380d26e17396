"""Labelled images: scikit-learn's digits offline, local npz, parquet and folders.

The Hub by name.
"""

from __future__ import annotations

import importlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from erase_sd.vision.samples import Pictures

Statistics = tuple[
    tuple[float, ...], tuple[float, ...]
]  # mean and standard deviation of each channel

# What a data set's public models expect, by the start of its name; the first that fits. A model of
# transformers brings its own (`erase_sd.vision.models.statistics`).
NORMALISATION: dict[str, Statistics] = {
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar20": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # as akamaster's CIFAR-10 networks
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny-imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # Imagenette too
    "oxford-pets": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),  # CLIP's
}
# Hub ids with their columns; cifar100 also answers to cifar20, its superclasses.
HUB: dict[str, dict[str, str]] = {
    "cifar10": {"id": "uoft-cs/cifar10", "image": "img", "label": "label"},
    "cifar100": {"id": "uoft-cs/cifar100", "image": "img", "label": "fine_label"},
    "cifar20": {
        "id": "uoft-cs/cifar100",
        "image": "img",
        "label": "coarse_label",
        "fine": "fine_label",
    },
    "svhn": {
        "id": "ufldl-stanford/svhn",
        "config": "cropped_digits",
        "image": "image",
        "label": "label",
    },
    "tiny-imagenet": {
        "id": "zh-plus/tiny-imagenet",
        "image": "image",
        "label": "label",
        "test": "valid",
    },
    "oxford-pets": {"id": "timm/oxford-iiit-pet", "image": "image", "label": "label"},
    "imagenette": {
        "id": "frgfm/imagenette",
        "config": "320px",
        "image": "image",
        "label": "label",
        "test": "validation",
    },
}
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


@dataclass(frozen=True)
class Form:
    """What images are made into.

    Attributes:
        size: Side to scale to; None leaves them.
        statistics: Mean and standard deviation; None takes those of the data set's name.
    """

    size: int | None = None
    statistics: Statistics | None = None

    def pictures(self, sources: Any, name: str, decode: Any = None) -> Pictures | Tensor:
        """Images of a data set; in memory as float32 while they are few (64 MB)."""
        known = next((v for k, v in NORMALISATION.items() if name.startswith(k)), ((0.5,), (0.5,)))
        mean, std = self.statistics or known
        made = Pictures(sources, decode, self.size, mean, std)
        small = isinstance(sources, np.ndarray) and len(sources) > 0
        if small and len(made) * made[torch.tensor([0])].numel() <= 1 << 28:
            return torch.cat(list(made.split(1024)))
        return made


def load_data(where: str, *, size: int | None = None, statistics: Statistics | None = None) -> Data:
    """Load a data set.

    Args:
        where: "digits" (scikit-learn's) or "emoji" (renders of the embedded world), both offline; a
            path to an `.npz`, `.parquet` or image folder (`train/CLASS/*.png`, `test/CLASS/*.png`),
            or a name that the Hub has (see `HUB`).
        size: Side to scale images to.
        statistics: Mean and standard deviation that the model expects; None takes those of the data
            set.

    Raises:
        ValueError: If it cannot be had, naming what was expected.

    >>> tuple(load_data("digits").train_x.shape)
    (1442, 1, 8, 8)
    """
    if where == "digits":
        return _digits()
    if where in EMBEDDED:
        module, name = EMBEDDED[where].split(":")
        made: Data = getattr(importlib.import_module(module), name)()
        return made
    form = Form(size, statistics)
    path = Path(where)
    if path.suffix == ".npz":
        return _npz(path, form)
    if path.suffix == ".parquet":
        return _parquet(path, form)
    if path.is_dir():
        return _folder(path, form)
    if where in HUB:
        return _hub(where, form)
    raise ValueError(
        f"no data {where!r}: digits, emoji, an .npz, a .parquet, an image folder, or "
        f"{', '.join(HUB)}"
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


def _decoded(source: Any) -> np.ndarray:
    """A file, encoded bytes as `datasets` writes them, or a PIL image, as `(h, w, 3)` uint8."""
    try:
        if isinstance(source, Path):
            with Image.open(source) as file:
                return np.asarray(file.convert("RGB"))
        image = Image.open(io.BytesIO(source["bytes"])) if isinstance(source, dict) else source
        return np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read an image: {error}") from error


def _parquet(path: Path, form: Form) -> Data:
    """Columns `image` (encoded bytes, as `datasets` writes), `label`.

    `split` ("train" or "test").
    """
    try:
        import pandas
    except ImportError as error:
        raise ValueError("reading parquet needs: pip install pandas pyarrow") from error
    try:
        table = pandas.read_parquet(path)
    except Exception as error:  # the engines raise errors of their own kinds
        raise ValueError(f"cannot read {path}: {error}") from error
    missing = [c for c in ("image", "label", "split") if c not in table]
    if missing:
        have = ", ".join(map(str, table.columns))
        raise ValueError(f"{path} has no column {missing[0]}; it has {have}")
    x, y = [], []
    for split in ("train", "test"):
        rows = table[table["split"] == split]
        x.append(form.pictures(list(rows["image"]), path.stem, _decoded))
        y.append(torch.tensor(list(rows["label"])).long())
    count = int(table["label"].max()) + 1
    return Data(path.stem, x[0], y[0], x[1], y[1], tuple(str(c) for c in range(count)))


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
        x.append(form.pictures([f for f, _ in files], path.name, _decoded))
        y.append(torch.tensor([i for _, i in files]))
    return Data(path.name, x[0], y[0], x[1], y[1], classes)


def _hub(name: str, form: Form) -> Data:
    about = HUB[name]
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{name} comes from the Hub: pip install 'erase-sd[hub]', or give a local .npz "
            f"or folder"
        ) from error
    try:
        loaded = datasets.load_dataset(about["id"], about.get("config"))
    except Exception as error:  # no network, no such cache: many kinds
        raise ValueError(
            f"{name} ({about['id']}) cannot be had here; give a local .npz or folder: {error}"
        ) from error
    x, y = [], []
    fine: list[tuple[str, ...] | None] = []
    for split in ("train", about.get("test", "test")):
        rows = loaded[split]
        x.append(form.pictures(rows[about["image"]], name, _decoded))
        y.append(torch.tensor(list(rows[about["label"]])))
        names = rows.features[about["fine"]].names if "fine" in about else None
        fine.append(tuple(names[i] for i in rows[about["fine"]]) if names else None)
    classes = tuple(loaded["train"].features[about["label"]].names)
    return Data(name, x[0], y[0], x[1], y[1], classes, fine[0], fine[1])
