"""Labelled samples: inputs in memory.

Or pictures that are decoded when a batch of them is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images kept as they came (uint8, files, encoded bytes) and normalised batch by batch.

    Ten thousand images of 224 x 224 are 1.5 GB of uint8, or the names of files, instead of 6 GB of
    float32.

    Attributes:
        sources: One for each image: an `(h, w, c)` or `(h, w)` uint8 array, or whatever `decode`
            takes.
        decode: From one source to an `(h, w, 3)` uint8 array; None if the sources are arrays.
        size: Side to scale to; None leaves them.
        mean: Of each channel, subtracted after scaling to 0..1.
        std: Of each channel, divided by.
    """

    sources: Sequence[Any] | np.ndarray
    decode: Callable[[Any], np.ndarray] | None = None
    size: int | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Normalised `(n, c, h, w)` float32 of some images."""
        return self._batch([self.sources[i] for i in _numbers(index, len(self))])

    def take(self, index: Tensor) -> Pictures:
        """Those images, still undecoded."""
        picked = _numbers(index, len(self))
        if isinstance(self.sources, np.ndarray):
            return replace(self, sources=self.sources[picked])
        return replace(self, sources=[self.sources[i] for i in picked])

    def split(self, size: int) -> Iterator[Tensor]:
        """All of them, `size` at a time."""
        for start in range(0, len(self), size):
            yield self._batch([self.sources[i] for i in range(start, min(start + size, len(self)))])

    def joined(self, other: Pictures) -> Pictures:
        """These and others of the same kind."""
        return replace(self, sources=[*self.sources, *other.sources])

    @property
    def channels(self) -> int:
        """Channels of the first image."""
        return int(self[torch.tensor([0])].shape[1])

    def _batch(self, sources: Sequence[Any]) -> Tensor:
        images = [s if self.decode is None else self.decode(s) for s in sources]
        if len({i.shape for i in images}) > 1:
            raise ValueError("the images differ in size; give --size")
        stacked = np.stack(images)
        if stacked.dtype != np.uint8 or stacked.ndim not in (3, 4):
            raise ValueError(
                f"expected uint8 images (n, h, w, c), got {stacked.dtype} {stacked.shape}"
            )
        x = torch.from_numpy(stacked if stacked.ndim == 4 else stacked[..., None])
        x = x.permute(0, 3, 1, 2).float() / 255
        if self.size is not None and tuple(x.shape[-2:]) != (self.size, self.size):
            x = torch.nn.functional.interpolate(
                x, (self.size, self.size), mode="bilinear", antialias=True
            )
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


def _numbers(index: Tensor, count: int) -> list[int]:
    """Positions that a mask or an index names."""
    picked = torch.nonzero(index)[:, 0] if index.dtype == torch.bool else index.reshape(-1)
    numbers = [int(i) for i in picked.tolist()]
    if numbers and not -count <= min(numbers) <= max(numbers) < count:
        raise IndexError(f"expected positions below {count}, got {max(numbers)}")
    return numbers


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and labels.

    Attributes:
        x: `(n, …)` float tensor, or `Pictures`; both answer `len(x)`, `x[index]` and
            `x.split(size)`.
        y: `(n,)` int64 labels.

    >>> import torch
    >>> few = Samples(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    >>> len(few[few.y == 1])
    2
    """

    x: Tensor | Pictures
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"expected as many labels as inputs, got {len(self.x)} inputs and "
                f"{len(self.y)} labels"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor) -> Samples:
        x = self.x.take(index) if isinstance(self.x, Pictures) else self.x[index]
        return Samples(x, self.y[index])

    def sample(self, count: int, seed: int = 0) -> Samples:
        """At most `count` of them, without replacement."""
        if count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self[order[:count]]

    def joined(self, other: Samples) -> Samples:
        """These and then others.

        Raises:
            ValueError: If the inputs of one are in memory and those of the other are not.
        """
        y = torch.cat([self.y, other.y])
        if isinstance(self.x, Pictures) and isinstance(other.x, Pictures):
            return Samples(self.x.joined(other.x), y)
        if isinstance(self.x, Pictures) or isinstance(other.x, Pictures):
            raise ValueError("expected inputs of one kind, got a tensor and pictures")
        return Samples(torch.cat([self.x, other.x]), y)

    def relabelled(self, y: Tensor) -> Samples:
        """The same inputs with other labels."""
        return Samples(self.x, y)
