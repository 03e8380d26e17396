"""Labelled images as the Hub has them: data sets by name, and folders of their parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.vision.samples import decoded

# Hub ids with their columns; cifar100 also answers to cifar20, its superclasses.
HUB: dict[str, dict[str, str]] = {
    "cifar10": {"id": "uoft-cs/cifar10", "label": "label"},
    "cifar100": {"id": "uoft-cs/cifar100", "label": "fine_label"},
    "cifar20": {"id": "uoft-cs/cifar100", "label": "coarse_label", "fine": "fine_label"},
    "svhn": {"id": "ufldl-stanford/svhn", "config": "cropped_digits", "label": "label"},
    "tiny-imagenet": {"id": "zh-plus/tiny-imagenet", "label": "label"},
    "oxford-pets": {"id": "timm/oxford-iiit-pet", "label": "label"},
    "imagenette": {"id": "frgfm/imagenette", "config": "320px", "label": "label"},
}
TESTS = ("test", "validation", "valid", "val")


@dataclass(frozen=True)
class Cell:
    """One encoded image of a table that stays on the disk.

    Attributes:
        column: Of the table, undecoded.
        row: Which.
    """

    column: Any
    row: int


def _image(cell: Cell) -> Any:
    return decoded(cell.column[cell.row])


@dataclass(frozen=True, eq=False)
class Table:
    """A split of a data set.

    Attributes:
        images: One `Cell` each.
        labels: `(n,)` int64.
        fine: A finer name of each, if there is one.
    """

    images: list[Cell]
    labels: Tensor
    fine: tuple[str, ...] | None


def tables(name: str) -> tuple[list[Table], tuple[str, ...], Any]:
    """Training and test split of a data set, the names of its classes, and how to decode an image.

    Args:
        name: In `HUB`; a Hub id, `OWNER/NAME`; or a folder of parquet files as the Hub has them. Of
            the latter two `…#COLUMN` names the labels where there are several.

    Raises:
        ValueError: If the library is missing, the data cannot be had, or has no such columns.
    """
    where, _, column = name.partition("#")
    about = HUB.get(where, {"id": where} | ({"label": column} if column else {}))
    loaded = _loaded(name, about)
    if "train" not in loaded or not (tests := [t for t in TESTS if t in loaded]):
        wanted, have = ", ".join(TESTS), ", ".join(loaded)
        raise ValueError(f"{name}: expected a split train and one of {wanted}, got {have}")
    features = loaded["train"].features
    image, label = _columns(name, features, about.get("label"))
    names = _names([loaded[s] for s in ("train", tests[0])], label)
    found = []
    for split in ("train", tests[0]):
        rows = loaded[split]
        numbers = {n: i for i, n in enumerate(names)}
        labels = [v if hasattr(features[label], "names") else numbers[str(v)] for v in rows[label]]
        fine = None
        if "fine" in about:
            told = features[about["fine"]].names
            fine = tuple(told[i] for i in rows[about["fine"]])
        pixels = rows[image]
        cells = [Cell(pixels, i) for i in range(len(rows))]
        found.append(Table(cells, torch.tensor(labels, dtype=torch.int64), fine))
    return found, names, _image


def is_parquet_folder(path: Path) -> bool:
    """Whether a folder holds parquet files as the Hub has them."""
    return path.is_dir() and any(path.rglob("*.parquet"))


def _loaded(name: str, about: dict[str, str]) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{name} is read by the library datasets: pip install 'erase-sd[hub]', or give an .npz "
            f"or an image folder"
        ) from error
    try:
        loaded = datasets.load_dataset(about["id"], about.get("config"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"{name} ({about['id']}) cannot be had here; give a local folder or .npz: {told}"
        ) from error
    for split, rows in loaded.items():
        for column, kind in rows.features.items():
            if isinstance(kind, datasets.Image):  # as bytes: a picture is decoded in its batch
                loaded[split] = rows.cast_column(column, datasets.Image(decode=False))
    return loaded


def _columns(name: str, features: Any, label: str | None) -> tuple[str, str]:
    """The column of the images and that of the labels."""
    images = [c for c, kind in features.items() if type(kind).__name__ == "Image"]
    if len(images) != 1:
        raise ValueError(
            f"{name}: expected one column of images, got {', '.join(images) or 'none'}"
        )
    classes = [c for c, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if label is None:
        label = "label" if "label" in features else classes[0] if len(classes) == 1 else ""
    if label not in features:
        have = ", ".join(classes or features)
        raise ValueError(f"{name}: expected a column of labels, {name}#COLUMN; there are {have}")
    return images[0], label


def _names(splits: list[Any], label: str) -> tuple[str, ...]:
    """The names of the classes, or what stands in the column, in order."""
    kind = splits[0].features[label]
    if hasattr(kind, "names"):
        return tuple(kind.names)
    return tuple(str(v) for v in sorted({v for rows in splits for v in rows[label]}))
