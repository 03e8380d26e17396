"""InceptionV3 as Fréchet distances are taken in: the network of the TensorFlow graph of 2015.

Module names are those of the weights that everyone uses, `pt_inception-2015-12-05-6726825d.pth`.
It differs from torchvision's: padding does not count in averages, and the last block takes the
maximum. Needs torch alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from erase_sd.models.files import file_hash
from erase_sd.models.hub import in_a_line

STANDARD = "6726825d"  # the first digits of the usual file's SHA-256, which its name ends with
SIZE = 299
Width = Literal[64, 2048]
_Kernel = int | tuple[int, int]
_Step = tuple[str, int, _Kernel, int]  # name, channels out, kernel, stride; padded at stride 1


class _Conv(nn.Module):
    def __init__(
        self, channels: int, out: int, kernel: _Kernel, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Chains of convolutions and a pooled branch, side by side.

    A chain that ends in a pair of convolutions forks: both read what comes before.
    """

    def __init__(
        self,
        channels: int,
        chains: Sequence[Sequence[_Step]],
        *,
        pool: int | None = None,
        maximum: bool = False,
        forks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.chains = [[step[0] for step in chain] for chain in chains]
        self.forks, self.pool, self.maximum = forks, pool, maximum
        for chain in chains:
            here = channels
            for name, out, kernel, stride in chain:
                self.add_module(name, _Conv(here, out, kernel, stride))
                here = here if name.endswith("_2a") or name.endswith("_3a") else out
        if pool is not None:
            self.branch_pool = _Conv(channels, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            plain = chain[:-2] if chain[-1] in self.forks else chain
            y = x
            for name in plain:
                y = self.get_submodule(name)(y)
            ends = chain[-2:] if chain[-1] in self.forks else []
            outputs += [self.get_submodule(name)(y) for name in ends] or [y]
        if self.pool is None:
            return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], 1)
        pooled = (
            F.max_pool2d(x, 3, 1, 1)
            if self.maximum
            else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        )
        return torch.cat([*outputs, self.branch_pool(pooled)], 1)


def _a(channels: int, pool: int) -> _Mixed:
    five: list[_Step] = [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)]
    double: list[_Step] = [
        ("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)
    ]  # fmt: skip
    return _Mixed(channels, [[("branch1x1", 64, 1, 1)], five, double], pool=pool)


def _b(channels: int) -> _Mixed:
    double: list[_Step] = [
        ("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)
    ]  # fmt: skip
    return _Mixed(channels, [[("branch3x3", 384, 3, 2)], double])


def _c(channels: int, width: int) -> _Mixed:
    wide, tall = (1, 7), (7, 1)
    seven: list[_Step] = [
        ("branch7x7_1", width, 1, 1), ("branch7x7_2", width, wide, 1), ("branch7x7_3", 192, tall, 1)
    ]  # fmt: skip
    double: list[_Step] = [
        ("branch7x7dbl_1", width, 1, 1), ("branch7x7dbl_2", width, tall, 1),
        ("branch7x7dbl_3", width, wide, 1), ("branch7x7dbl_4", width, tall, 1),
        ("branch7x7dbl_5", 192, wide, 1),
    ]  # fmt: skip
    return _Mixed(channels, [[("branch1x1", 192, 1, 1)], seven, double], pool=192)


def _d(channels: int) -> _Mixed:
    three: list[_Step] = [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)]
    seven: list[_Step] = [
        ("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, (1, 7), 1),
        ("branch7x7x3_3", 192, (7, 1), 1), ("branch7x7x3_4", 192, 3, 2),
    ]  # fmt: skip
    return _Mixed(channels, [three, seven])


def _e(channels: int, *, maximum: bool) -> _Mixed:
    three: list[_Step] = [
        ("branch3x3_1", 384, 1, 1), ("branch3x3_2a", 384, (1, 3), 1),
        ("branch3x3_2b", 384, (3, 1), 1),
    ]  # fmt: skip
    double: list[_Step] = [
        ("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1),
        ("branch3x3dbl_3a", 384, (1, 3), 1), ("branch3x3dbl_3b", 384, (3, 1), 1),
    ]  # fmt: skip
    chains: list[list[_Step]] = [[("branch1x1", 320, 1, 1)], three, double]
    forks = ("branch3x3_2b", "branch3x3dbl_3b")
    return _Mixed(channels, chains, pool=192, maximum=maximum, forks=forks)


class Inception(nn.Module):
    """Pictures to the features of a pooling layer.

    Args:
        width: 2048 for the last pooling, as Fréchet distances are usually taken; 64 for the first.

    >>> Inception(64)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 64])
    """

    def __init__(self, width: Width = 2048) -> None:
        super().__init__()
        if width not in (64, 2048):
            raise ValueError(f"expected 64 or 2048 features, got {width}")
        self.num_features = width  # torchmetrics asks for it under this name
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        if width == 64:
            return
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, pad=False)
        blocks = {
            "5b": _a(192, 32), "5c": _a(256, 64), "5d": _a(288, 64), "6a": _b(288),
            "6b": _c(768, 128), "6c": _c(768, 160), "6d": _c(768, 160), "6e": _c(768, 192),
            "7a": _d(768), "7b": _e(1280, maximum=False), "7c": _e(2048, maximum=True),
        }  # fmt: skip
        for name, block in blocks.items():
            self.add_module(f"Mixed_{name}", block)

    def forward(self, images: Tensor) -> Tensor:
        """`(n, 3, h, w)` uint8, or floating point in 0..1, to `(n, width)`."""
        x = images.to(self.Conv2d_1a_3x3.conv.weight.dtype)
        x = x / 255 if images.dtype == torch.uint8 else x
        x = 2 * F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False) - 1
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        if self.num_features == 64:
            return x.mean((2, 3))
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed_"):
                x = block(x)
        return x.mean((2, 3))


def weights_file(where: str) -> Path:
    """The file of the network's weights: a path, or OWNER/NAME:FILE on the Hub.

    Raises:
        ValueError: If it cannot be had.
    """
    if Path(where).is_file():
        return Path(where)
    repository, colon, file = where.partition(":")
    if not where or not colon or repository.count("/") != 1:
        told = "pt_inception-2015-12-05-6726825d.pth of pytorch-fid's releases is the usual one"
        raise ValueError(f"expected --inception FILE or OWNER/NAME:FILE, got {where!r}; {told}")
    with in_a_line(f"{file} of {repository} cannot be had here"):
        return Path(hf_hub_download(repository, file))


def identity(where: str) -> str:
    """Which weights they are: "" for the usual file, else "@" and the hash of the file."""
    digest = file_hash(weights_file(where))
    return "" if digest.startswith(STANDARD) else f"@{digest[:16]}"


def load_inception(where: str, width: Width) -> Inception:
    """The network with weights from a file.

    Args:
        where: `.safetensors`, or a `.pth` read by torch's loader of tensors alone; see
            `weights_file`.
        width: Features.

    Raises:
        ValueError: If the file is not there, or holds another network.
    """
    path, network = weights_file(where), Inception(width)
    try:
        state: dict[str, Any] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        own = network.state_dict()
        absent = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
        if absent:
            raise ValueError(f"it lacks {absent[0]}")
        network.load_state_dict({n: state.get(n, v) for n, v in own.items()})
    except (
        OSError, RuntimeError, ValueError, TypeError, AttributeError,
        SafetensorError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        told = str(error).splitlines()[0]
        raise ValueError(f"{path} does not hold InceptionV3's weights: {told}") from error
    return network.eval()


def features_of(network: Inception, images: Sequence[Image.Image]) -> np.ndarray:
    """`(n, width)` float64 of pictures, each at its own size."""
    rows = []
    with torch.no_grad():
        for image in images:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            rows.append(network(pixels[None]).double())
    return np.asarray(torch.cat(rows))
