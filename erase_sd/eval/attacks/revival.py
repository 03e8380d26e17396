"""The closed-form embedding that best revives a concept under a linear edit (RECE's)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from erase_sd.algebra.revival import revival
from erase_sd.artifact.base import weight_gram, weight_streams
from erase_sd.eval.attacks.target import Target
from erase_sd.pipelines.live import LiveErasure
from erase_sd.text.encoder import TextEncoder


@contextmanager
def revived(target: Target, steps: int | None = None) -> Iterator[Tensor | str]:
    """States `(1, L, d)` found by algebra for every token of the prompt but BOS.

    Without an edit there is nothing to invert, and the prompt stays as it is.

    Raises:
        ValueError: If steps are given: it is solved, not searched.
    """
    if steps is not None:
        raise ValueError(f"the revival takes no steps, got {steps}")
    if target.edit is None:
        yield target.prompt
        return
    encoder = TextEncoder.of(target.pipe)
    weights = LiveErasure.of(target.original or target.pipe).originals()
    streams = weight_streams(encoder.architecture, weights, encoder.widths)
    gram = weight_gram(streams["tokens"].values(), encoder.width)
    states = encoder.encode([target.prompt]).states[0].double()
    with torch.no_grad():
        found = revival(target.edit, states, gram, rho=1e-6 * float(gram.trace()) / len(gram))
        states = torch.cat([states[:1], found[1:]]).to(target.pipe.unet.dtype)[None]
    yield states
