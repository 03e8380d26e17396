"""Labelled samples: inputs in memory.

Or pictures that are decoded when a batch of them is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Statistics = tuple[
    tuple[float, ...], tuple[float, ...]
]  # mean and standard deviation of each channel

# What a data set's public models expect, by the start of its name; the first that fits. A model of
# transformers brings its own image processor (`erase_sd.vision.pretrained.processor_of`).
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
AT_ONCE = 1 << 21  # numbers of the inputs that run at once
IN_MEMORY = 1 << 26  # numbers of a data set that is kept as float32, normalised: 256 MB


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
        processor: A transformers image processor that does all of this in its own way instead:
            scaling, cropping, normalising.

    >>> len(Pictures(np.zeros((2, 8, 8), np.uint8)))
    2
    """

    sources: Sequence[Any] | np.ndarray
    decode: Callable[[Any], np.ndarray] | None = None
    size: int | None = None
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    processor: Any = None

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
        """These and others of the same kind.

        Raises:
            ValueError: If the others are decoded or normalised in another way.
        """
        kinds = [(p.decode, p.size, p.mean, p.std, p.processor) for p in (self, other)]
        if kinds[0] != kinds[1]:
            raise ValueError("expected pictures that are prepared alike, got two ways")
        return replace(self, sources=[*self.sources, *other.sources])

    @property
    def channels(self) -> int:
        """Channels of the first image."""
        return int(self[torch.tensor([0])].shape[1])

    def _batch(self, sources: Sequence[Any]) -> Tensor:
        images = [s if self.decode is None else self.decode(s) for s in sources]
        if self.processor is not None:
            three = [np.stack([i] * 3, -1) if i.ndim == 2 else i for i in images]
            made = self.processor(
                images=three, return_tensors="pt", input_data_format="channels_last"
            )
            x: Tensor = made["pixel_values"]
            return x.float()
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


@dataclass(frozen=True)
class Form:
    """What images are made into.

    Attributes:
        size: Side to scale to; None leaves them, or leaves it to the processor.
        processor: The image processor of a transformers model. Where a size is given it says how
            to normalise, and nothing else.
    """

    size: int | None = None
    processor: Any = None

    def pictures(self, sources: Any, name: str, decode: Any = None) -> Pictures | Tensor:
        """Images of a data set; in memory as float32 while they are few.

        Args:
            sources: See `Pictures`.
            name: Of the data set, whose constants are taken where no processor has some.
            decode: See `Pictures`.
        """
        if self.processor is not None and self.size is None:
            return Pictures(sources, decode, processor=self.processor)
        known = next((v for k, v in NORMALISATION.items() if name.startswith(k)), ((0.5,), (0.5,)))
        if self.processor is not None:
            known = tuple(self.processor.image_mean), tuple(self.processor.image_std)
        made = Pictures(sources, decode, self.size, *known)
        small = isinstance(sources, np.ndarray) and len(sources) > 0
        if small and len(made) * made[torch.tensor([0])].numel() <= IN_MEMORY:
            return torch.cat(list(made.split(1024)))
        return made


def decoded(source: Any) -> np.ndarray:
    """A file, or encoded bytes as `datasets` gives them, as `(h, w, 3)` uint8.

    Raises:
        ValueError: If it is no image.
    """
    try:
        with Image.open(
            source if isinstance(source, Path) else io.BytesIO(source["bytes"])
        ) as file:
            return np.asarray(file.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read an image: {error}") from error


def at_once(x: Tensor | Pictures, most: int) -> int:
    """How many inputs may run at once: `most`, or fewer where they are large.

    Of 32 x 32 images 512 fit, of 224 x 224 ones 13: what a network keeps for its gradients grows
    with them.

    >>> at_once(torch.zeros(2, 3, 224, 224), 256), at_once(torch.zeros(2, 3, 32, 32), 256)
    (13, 256)
    """
    size = x[torch.tensor([0])].numel() if len(x) else 1
    return max(1, min(most, AT_ONCE // max(1, size)))


def portions(index: Tensor, most: int) -> tuple[Tensor, ...]:
    """Positions in as few portions of about equal size as have at most `most`.

    >>> [len(p) for p in portions(torch.arange(10), 4)]
    [4, 3, 3]
    """
    return index.tensor_split(max(1, -(-len(index) // most)))


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of images padded by 4, and flips."""
    n, _, h, w = x.shape
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (n, 2), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    rows = shift[:, 0, None] + torch.arange(h)
    order = torch.where(flip[:, None], torch.arange(w - 1, -1, -1), torch.arange(w))
    columns = order + shift[:, 1, None]
    picked = torch.arange(n)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


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
