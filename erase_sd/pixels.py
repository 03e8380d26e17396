"""Pictures as the networks read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_unit(images: np.ndarray) -> Tensor:
    """Bytes to what autoencoders and judges read.

    Args:
        images: `(n, h, w, 3)` uint8.

    Returns:
        `(n, 3, h, w)` float32 in [-1, 1].

    >>> to_unit(np.full((1, 2, 2, 3), 255, np.uint8)).max().item()
    1.0
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def stacked(images: Sequence[Image.Image], size: int) -> np.ndarray:
    """Pictures as one array `(n, size, size, 3)` of uint8; others are resized.

    >>> stacked([Image.new("RGB", (8, 8))], 4).shape
    (1, 4, 4, 3)
    """
    return np.stack([np.asarray(i.convert("RGB").resize((size, size))) for i in images])
