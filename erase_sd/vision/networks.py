"""The small networks of the papers, as shapes; weights come from files or from training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module, ABC):
    """A block that adds to its input, or to a shortcut of it, what it makes of it.

    `relu(norm(layer(…)) + skip(x))`.
    """

    @abstractmethod
    def skip(self, x: Tensor) -> Tensor:
        """What is added, `(n, c', h', w')`."""

    @abstractmethod
    def ending(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """The layer that it adds the output of, and the norm between."""


class BasicBlock(Residual):
    """Two 3 x 3 convolutions with a shortcut: padded (option A) or projected (option B)."""

    def __init__(self, inner: int, outer: int, stride: int, *, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.pad = (outer - inner) // 2 if option == "A" and stride > 1 else 0
        self.shortcut = nn.Sequential()
        if option == "B" and (stride > 1 or inner != outer):
            self.shortcut = _projection(inner, outer, stride)

    def skip(self, x: Tensor) -> Tensor:
        """The input: padded, projected or as it is."""
        if self.pad:
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        short: Tensor = self.shortcut(x)
        return short

    def ending(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """Its second convolution."""
        return self.conv2, self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """`(n, c, h, w)` to `(n, c', h', w')`."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


class Bottleneck(Residual):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, the last four times as wide.

    With a projected shortcut.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        width = outer // 4
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride > 1 or inner != outer:
            self.shortcut = _projection(inner, outer, stride)

    def skip(self, x: Tensor) -> Tensor:
        """The input, or its projection."""
        short: Tensor = self.shortcut(x)
        return short

    def ending(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """Its third convolution."""
        return self.conv3, self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """`(n, c, h, w)` to `(n, c', h', w')`."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.skip(x))


def _projection(inner: int, outer: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 images.

    Names as in akamaster's public weights (option A) or torchvision's (option B).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        classes: int,
        *,
        option: str,
        stem: int | None = None,
    ) -> None:
        super().__init__()
        inner = stem or widths[0]
        self.conv1 = nn.Conv2d(3, inner, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.stages = len(blocks)
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            stage: list[nn.Module] = []
            for j in range(count):
                stride = 2 if i > 1 and j == 0 else 1
                deep = option == "bottleneck"
                block = (
                    Bottleneck(inner, width, stride)
                    if deep
                    else BasicBlock(inner, width, stride, option=option)
                )
                stage.append(block)
                inner = width
            setattr(self, f"layer{i}", nn.Sequential(*stage))
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to logits `(n, classes)`."""
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _convolutions(plan: Sequence[int | str], channels: int) -> tuple[list[nn.Module], int]:
    """3 x 3 convolutions with batch norm, and pooling; and the last width."""
    parts: list[nn.Module] = []
    for step in plan:
        if step == "pool":
            parts.append(nn.MaxPool2d(2))
        else:
            parts += [
                nn.Conv2d(channels, int(step), 3, padding=1),
                nn.BatchNorm2d(int(step)),
                nn.ReLU(),
            ]
            channels = int(step)
    return parts, channels


def _vgg(plan: Sequence[int | str], classes: int, channels: int) -> nn.Module:
    parts, width = _convolutions(plan, channels)
    head = nn.Linear(width, classes)
    return nn.Sequential(nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _small_vgg(classes: int, channels: int) -> nn.Module:
    """PGU's SmallVGG: three convolutional and two linear layers.

    The paper prints no widths; these are ours.
    """
    parts, width = _convolutions((64, "pool", 128, "pool", 256, "pool"), channels)
    body = nn.Sequential(*parts)
    inner = nn.Linear(width * 16, 256)
    return nn.Sequential(
        body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), inner, nn.ReLU(), nn.Linear(256, classes)
    )


def _all_cnn(classes: int, channels: int) -> nn.Module:
    """All Convolutional Net (arXiv 1412.6806): strides instead of pooling."""
    parts: list[nn.Module] = []
    for width, stride, kernel in (
        (96, 1, 3),
        (96, 1, 3),
        (96, 2, 3),
        (192, 1, 3),
        (192, 1, 3),
        (192, 2, 3),
        (192, 1, 3),
        (192, 1, 1),
    ):
        convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        parts += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(
        *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


def _mlp(classes: int, channels: int) -> nn.Module:
    """Two hidden layers, for 8 x 8 digits."""
    first, second = nn.Linear(64 * channels, 128), nn.Linear(128, 64)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(64, classes))


def _cnn(classes: int, channels: int) -> nn.Module:
    """Two convolutions and two linear layers, for 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


_VGG16 = (
    64,
    64,
    "pool",
    128,
    128,
    "pool",
    256,
    256,
    256,
    "pool",
    512,
    512,
    512,
    "pool",
    512,
    512,
    512,
    "pool",
)
_VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
_WIDE = (64, 128, 256, 512)

ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet20": lambda n, c: CifarResNet((3, 3, 3), (16, 32, 64), n, option="A"),
    "resnet56": lambda n, c: CifarResNet((9, 9, 9), (16, 32, 64), n, option="A"),
    "resnet18": lambda n, c: CifarResNet((2, 2, 2, 2), _WIDE, n, option="B"),
    "resnet50": lambda n, c: CifarResNet(
        (3, 4, 6, 3), (256, 512, 1024, 2048), n, option="bottleneck", stem=64
    ),
    "vgg16-bn": lambda n, c: _vgg(_VGG16, n, c),
    "vgg11-bn": lambda n, c: _vgg(_VGG11, n, c),
    "small-vgg": _small_vgg,
    "all-cnn": _all_cnn,
}


def build(name: str, classes: int, channels: int = 3, *, seed: int = 0) -> nn.Module:
    """A fresh network by name.

    Raises:
        ValueError: If there is none of that name.

    >>> sum(p.numel() for p in build("resnet20", 10).parameters())
    269722
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name](classes, channels)
