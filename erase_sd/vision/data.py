"""Labelled images: scikit-learn's digits offline, local npz, parquet and folders, the Hub by name."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Mean and standard deviation that a data set's public models expect, by the start of its name; the first that fits.
NORMALISATION = {
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar20": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # as akamaster's CIFAR-10 networks
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
# Hub ids with their columns; cifar100 also answers to cifar20, its superclasses.
HUB: dict[str, dict[str, Any]] = {
    "cifar10": {"id": "uoft-cs/cifar10", "image": "img", "label": "label"},
    "cifar100": {"id": "uoft-cs/cifar100", "image": "img", "label": "fine_label"},
    "cifar20": {"id": "uoft-cs/cifar100", "image": "img", "label": "coarse_label", "fine": "fine_label"},
    "svhn": {"id": "ufldl-stanford/svhn", "config": "cropped_digits", "image": "image", "label": "label"},
    "tiny-imagenet": {"id": "zh-plus/tiny-imagenet", "image": "image", "label": "label", "test": "valid"},
    "oxford-pets": {"id": "timm/oxford-iiit-pet", "image": "image", "label": "label"},
    "imagenette": {
        "id": "frgfm/imagenette",
        "config": "320px",
        "image": "image",
        "label": "label",
        "test": "validation",
    },
}


@dataclass(frozen=True, eq=False)
class Data:
    """Training and test images with labels.

    Attributes:
        name: Where it is from.
        train_x: `(n, c, h, w)` float32, normalised.
        train_y: `(n,)` int64.
        test_x: Likewise.
        test_y: Likewise.
        classes: Names of the labels.
        train_fine: A finer name of each sample, if there are any.
        test_fine: Likewise.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    train_fine: tuple[str, ...] | None = None
    test_fine: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for x, y, part in ((self.train_x, self.train_y, "training"), (self.test_x, self.test_y, "test")):
            if len(x) != len(y):
                raise ValueError(f"{self.name}: {len(x)} {part} images but {len(y)} labels")
            if not torch.isfinite(x).all():
                raise ValueError(f"{self.name}: the {part} images hold NaN or infinite values")
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(self.classes):
                raise ValueError(f"{self.name}: a label outside 0..{len(self.classes) - 1}")


def load_data(where: str, *, size: int | None = None) -> Data:
    """Load a data set.

    Args:
        where: "digits" (scikit-learn's) or "emoji" (renders of the embedded world), both offline; a path to an
            `.npz`, `.parquet` or image folder (`train/CLASS/*.png`, `test/CLASS/*.png`), or a name that the Hub has
            (see `HUB`).
        size: Side to scale images to.

    Raises:
        ValueError: If it cannot be had, naming what was expected.
    """
    if where == "digits":
        return _digits()
    if where == "emoji":
        return emoji()
    path = Path(where)
    if path.suffix == ".npz":
        return _npz(path, size)
    if path.suffix == ".parquet":
        return _parquet(path, size)
    if path.is_dir():
        return _folder(path, size)
    if where in HUB:
        return _hub(where, size)
    raise ValueError(f"no data {where!r}: digits, emoji, an .npz, a .parquet, an image folder, or {', '.join(HUB)}")


def _digits() -> Data:
    """8 x 8 grey digits: 1,797 real handwritten ones; every fifth of each class is a test sample."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images).float()[:, None] / 16
    y = torch.from_numpy(raw.target).long()
    order = torch.stack([torch.cumsum(y == c, 0) * (y == c) for c in range(10)]).sum(0)
    test = order % 5 == 0
    return Data("digits", x[~test], y[~test], x[test], y[test], tuple(str(c) for c in range(10)))


def emoji(train: int = 30, test: int = 20) -> Data:
    """Scenes of one object each, for all objects of the embedded world; the finer name is the artist's."""
    from dataclasses import replace

    from erase_sd.emoji.render import available_objects, render
    from erase_sd.emoji.world import load_world, sample_scene

    world, held = load_world(), available_objects()
    rng = np.random.default_rng(2024)
    parts: list[tuple[Tensor, Tensor, tuple[str, ...]]] = []
    for count in (train, test):
        images: list[np.ndarray] = []
        labels: list[int] = []
        artists: list[str] = []
        for i in range(len(world.names)):
            while len(labels) < (i + 1) * count:
                scene = sample_scene(rng, pairs=0)
                if i in held[scene.artist]:
                    images.append(render(replace(scene, objects=(i,))))
                    labels.append(i)
                    artists.append(world.artists[scene.artist])
        parts.append((_pixels(np.stack(images), "emoji"), torch.tensor(labels), tuple(artists)))
    (a, b, c), (d, e, f) = parts
    return Data("emoji", a, b, d, e, tuple(world.names), c, f)


def _pixels(images: np.ndarray, name: str) -> Tensor:
    """`(n, h, w, c)` or `(n, h, w)` uint8 to normalised `(n, c, h, w)`."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"expected uint8 images (n, h, w, 3), got {images.dtype} {images.shape}")
    x = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).float() / 255
    mean, std = next((v for k, v in NORMALISATION.items() if name.startswith(k)), ((0.5,), (0.5,)))
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _npz(path: Path, size: int | None) -> Data:
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"cannot read {path}: missing, truncated or no .npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [k for k in keys if k not in file]
            if missing:
                raise ValueError(
                    f"{path} lacks {missing[0]}; expected {', '.join(keys)}, and classes if they have names"
                )
            held = {k: file[k] for k in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    labels = [torch.from_numpy(held[k].astype(np.int64)) for k in ("train_labels", "test_labels")]
    count = int(max(y.max() for y in labels)) + 1
    classes = tuple(str(c) for c in held.get("classes", np.arange(count)))
    fine = [tuple(map(str, held[k])) if k in held else None for k in ("train_nouns", "test_nouns")]
    x = [_sized(_pixels(held[k], path.stem), size) for k in ("train_images", "test_images")]
    return Data(path.stem, x[0], labels[0], x[1], labels[1], classes, fine[0], fine[1])


def _sized(x: Tensor, size: int | None) -> Tensor:
    if size is None or x.shape[-1] == size:
        return x
    return torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)


def _decoded(images: Sequence[Any], size: int | None) -> np.ndarray:
    """Pictures of any size as `(n, s, s, 3)` uint8."""
    import io

    from PIL import Image

    made = []
    for image in images:
        if isinstance(image, Path):
            with Image.open(image) as file:
                picture = file.convert("RGB")
        else:
            picture = (Image.open(io.BytesIO(image["bytes"])) if isinstance(image, dict) else image).convert("RGB")
        if size is not None:
            picture = picture.resize((size, size))
        made.append(np.asarray(picture))
    if len({m.shape for m in made}) > 1:
        raise ValueError("the images differ in size; give --size")
    return np.stack(made)


def _parquet(path: Path, size: int | None) -> Data:
    """Columns `image` (encoded bytes, as `datasets` writes), `label`, `split` ("train" or "test")."""
    try:
        import pandas
    except ImportError as error:
        raise ValueError("reading parquet needs pandas and pyarrow: pip install pandas pyarrow") from error
    try:
        table = pandas.read_parquet(path)
    except Exception as error:  # the engines raise errors of their own kinds
        raise ValueError(f"cannot read {path}: {error}") from error
    missing = [c for c in ("image", "label", "split") if c not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]}; it has {', '.join(map(str, table.columns))}")
    parts: list[Tensor] = []
    for split in ("train", "test"):
        rows = table[table["split"] == split]
        parts += [_pixels(_decoded(list(rows["image"]), size), path.stem), torch.tensor(list(rows["label"])).long()]
    count = int(table["label"].max()) + 1
    return Data(path.stem, parts[0], parts[1], parts[2], parts[3], tuple(str(c) for c in range(count)))


def _folder(path: Path, size: int | None) -> Data:
    classes = tuple(sorted(p.name for p in (path / "train").glob("*") if p.is_dir()))
    if not classes:
        raise ValueError(f"{path} holds no train/CLASS folders")
    parts: list[Tensor] = []
    for split in ("train", "test"):
        files = [(f, i) for i, c in enumerate(classes) for f in sorted((path / split / c).glob("*"))]
        if not files:
            raise ValueError(f"{path / split} holds no images")
        parts += [_pixels(_decoded([f for f, _ in files], size), path.name), torch.tensor([i for _, i in files])]
    return Data(path.name, parts[0], parts[1], parts[2], parts[3], classes)


def _hub(name: str, size: int | None) -> Data:
    about = HUB[name]
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{name} comes from the Hub: pip install datasets, or give a local .npz or folder") from error
    try:
        loaded = datasets.load_dataset(about["id"], about.get("config"))
    except Exception as error:  # no network, no such cache: many kinds
        raise ValueError(f"{name} ({about['id']}) cannot be had here; give a local .npz or folder: {error}") from error
    parts: list[Tensor] = []
    fine: list[tuple[str, ...] | None] = []
    for split in ("train", about.get("test", "test")):
        rows = loaded[split]
        parts += [_pixels(_decoded(rows[about["image"]], size), name), torch.tensor(rows[about["label"]])]
        if "fine" in about:
            names = rows.features[about["fine"]].names
            fine.append(tuple(names[i] for i in rows[about["fine"]]))
    classes = tuple(loaded["train"].features[about["label"]].names)
    fine = fine or [None, None]
    return Data(name, parts[0], parts[1], parts[2], parts[3], classes, fine[0], fine[1])
