"""What layers read, gathered as second moments: streamed, mergeable, no sample kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from erase_sd.algebra.moments import SecondMoment
from erase_sd.vision.layers import Layer, evaluating, place, watching
from erase_sd.vision.samples import Pictures, at_once

Moments = dict[str, list[SecondMoment]]


@torch.no_grad()
def collect(
    model: nn.Module,
    chosen: Sequence[Layer],
    x: Tensor | Pictures,
    *,
    batch: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Moments:
    """Moments of what some layers read for inputs `x`, in evaluation mode.

    Mergeable: moments of parts of the data, on whatever process, add up to those of the whole.

    Args:
        model: The model the layers are of.
        chosen: Its layers.
        x: `(n, …)` inputs.
        batch: Inputs at once; None takes as many as memory stays bounded with.
        limit: About so many rows of each layer at most, drawn evenly from all inputs; None takes
            all.
        seed: Of that draw.

    Raises:
        ValueError: If there are no inputs, or a layer did not run.

    >>> import torch
    >>> from erase_sd.vision.layers import layers
    >>> net = torch.nn.Linear(3, 2)
    >>> found = collect(net, layers(net), torch.ones(5, 3))
    >>> found[""][0].count
    5.0
    """
    if not len(x):
        raise ValueError("there are no inputs to gather features from")
    totals: Moments = {}
    generator = torch.Generator().manual_seed(seed)

    def add(layer: Layer, new: list[SecondMoment]) -> None:
        old = totals.get(layer.name)
        totals[layer.name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

    def see(layer: Layer, rows: Tensor) -> None:
        if limit is None:
            add(layer, layer.moments(rows))
            return
        for chunk in layer.rows(rows):
            share = limit / (len(chunk[0]) / len(rows) * len(x))  # of the rows of this chunk
            keep = max(1, round(min(1.0, share) * len(chunk[0])))
            picked = torch.randperm(len(chunk[0]), generator=generator)[:keep]
            add(layer, [SecondMoment.of(group.cpu()[picked]) for group in chunk])

    device, dtype = place(model)
    with evaluating(model), watching(chosen, see):
        for part in x.split(batch or at_once(x, 256)):
            model(part.to(device, dtype))
    missing = [y.name for y in chosen if y.name not in totals]
    if missing:
        raise ValueError(f"the layer {missing[0]} does not run in a forward pass")
    return totals


def gathered(moments: Mapping[str, Sequence[SecondMoment]]) -> Moments:
    """The sum of all processes' moments under `accelerate launch`.

    Each gives those of its part of the data.
    """
    from accelerate import PartialState
    from accelerate.utils import reduce

    device = PartialState().device

    def whole(moment: SecondMoment) -> SecondMoment:
        count = torch.tensor([moment.count], dtype=torch.float64)
        parts = (moment.gram, moment.total, count)
        gram, total, counts = (reduce(t.to(device), "sum").cpu() for t in parts)
        return SecondMoment.summed(gram, total, float(counts))

    return {name: [whole(m) for m in groups] for name, groups in moments.items()}
