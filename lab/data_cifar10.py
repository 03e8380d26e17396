"""`python -m lab.data_cifar10`: CIFAR-10 and public networks into build/data.

The archive and the checkpoints are pickles: they are opened by a reader that builds arrays and
tensors, nothing else. Finer nouns come from the file names in the archive
(`tabby_cat_s_000123.png`).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from erase_sd.models.files import atomic_path

PER_CLASS = 2_000  # training images kept of each class: the first in the order of the archive
ARCHIVE = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
_AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
# The names hold the first digits of each file's SHA-256.
NETWORKS = {
    "resnet20": f"{_AKAMASTER}/resnet20-12fca82f.th",
    "resnet56": f"{_AKAMASTER}/resnet56-4bfd9763.th",
}
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class ArraysOnly(pickle.Unpickler):
    """Reads plain values and numpy arrays; anything else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Only what an array is made of."""
        if (module, name) not in _ALLOWED:
            raise ValueError(f"the archive asks for {module}.{name}: expected arrays alone")
        return super().find_class(module, name)


def fetched(url: str, sha256: str, folder: Path) -> Path:
    """A file from the network, kept, and refused unless its SHA-256 begins as it should."""
    path = folder / url.rpartition("/")[2]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft, urllib.request.urlopen(url, timeout=60) as source:
            draft.write_bytes(source.read())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(sha256):
        raise ValueError(
            f"{path}: expected SHA-256 {sha256}…, got {digest}; delete it and try again"
        )
    return path


def noun(file: str) -> str:
    """`tabby_cat_s_000123.png` to "tabby cat".

    >>> noun("tabby_cat_s_000123.png")
    'tabby cat'
    """
    return re.sub(r"_s_\d+\.png$", "", file).replace("_", " ")


def images(archive: Path) -> dict[str, np.ndarray]:
    """The arrays of the npz that `erase_sd.vision.load_data` reads."""
    found: dict[str, list[Any]] = {}
    with tarfile.open(archive) as tar:

        def read(name: str) -> dict[bytes, Any]:
            member = tar.extractfile(f"cifar-10-batches-py/{name}")
            if member is None:
                raise ValueError(f"{archive} lacks {name}")
            value: dict[bytes, Any] = ArraysOnly(io.BytesIO(member.read()), encoding="bytes").load()
            return value

        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        for name in names:
            batch, split = read(name), "test" if name == "test_batch" else "train"
            pixels = np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            found.setdefault(f"{split}_images", []).append(pixels)
            found.setdefault(f"{split}_labels", []).append(np.asarray(batch[b"labels"], np.uint8))
            found.setdefault(f"{split}_nouns", []).append(
                [noun(f.decode()) for f in batch[b"filenames"]]
            )
        classes = [c.decode() for c in read("batches.meta")[b"label_names"]]
    made = {k: np.concatenate(v) for k, v in found.items()}
    kept = np.concatenate(
        [np.nonzero(made["train_labels"] == c)[0][:PER_CLASS] for c in range(len(classes))]
    )
    for key in ("train_images", "train_labels", "train_nouns"):
        made[key] = made[key][kept]
    return made | {"classes": np.array(classes)}


def main(argv: list[str] | None = None) -> int:
    """Fetch, check, convert."""
    p = argparse.ArgumentParser(prog="python -m lab.data_cifar10", description=__doc__)
    p.add_argument("--out", type=Path, default=Path("build/data"))
    args = p.parse_args(argv)
    raw = args.out / "raw"
    made = images(fetched(*ARCHIVE, raw))
    with atomic_path(args.out / "cifar10.npz", force=True) as draft:
        with draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **made)
    for name, url in NETWORKS.items():
        path = fetched(url, url.rpartition("-")[2].removesuffix(".th"), raw)
        state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
        tensors = {k.removeprefix("module."): v.contiguous() for k, v in state.items()}
        with atomic_path(args.out / f"cifar10_{name}.safetensors", force=True) as draft:
            save_file(tensors, draft)
    print(f"wrote {args.out / 'cifar10.npz'} and {len(NETWORKS)} networks")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
