"""Layers of a classifier that an edit can go to: their features, gathered by hooks, and their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment

ROWS = 1 << 24  # numbers in one chunk of unfolded patches: 128 MB in float64


@dataclass(frozen=True)
class Layer:
    """A linear, convolutional or attention layer, by its name in the model.

    A convolution's kernel is flattened to `(C_out, C_in k k)` and its features are the patches that it
    reads: with its own stride, padding, dilation and groups. Each group has features of its own.
    """

    name: str
    module: nn.Module

    @property
    def groups(self) -> int:
        """How many independent weight matrices it has: more than one for grouped convolutions."""
        return self.module.groups if isinstance(self.module, nn.Conv2d) else 1

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that an edit changes."""
        module: Any = self.module
        return module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight

    @property
    def width(self) -> int:
        """Width `d` of its features."""
        return self.weight[0].numel()

    def rows(self, x: Tensor) -> Iterator[list[Tensor]]:
        """What it reads for inputs `x`, in chunks: for each group rows `(n, d)`."""
        module = self.module
        if not isinstance(module, nn.Conv2d):
            yield [x.reshape(-1, x.shape[-1])]
            return
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pad = module._reversed_padding_repeated_twice  # the layer's own, "same" included
        where = {"dilation": module.dilation, "stride": module.stride}
        x = F.pad(x, pad, mode=mode) if any(pad) else x
        size = max(1, ROWS // max(1, x[0].numel() * module.kernel_size[0] * module.kernel_size[1]))
        for chunk in x.split(size):
            patches = F.unfold(chunk, module.kernel_size, **where)  # (n, C k k, L)
            yield [g.transpose(1, 2).reshape(-1, self.width) for g in patches.chunk(self.groups, dim=1)]

    def moments(self, x: Tensor) -> list[SecondMoment]:
        """Moments of `rows`, one for each group; memory does not grow with the batch."""
        total = [SecondMoment.zeros(self.width) for _ in range(self.groups)]
        for chunk in self.rows(x):
            total = [t + SecondMoment.of(rows.cpu()) for t, rows in zip(total, chunk, strict=True)]
        return total

    def matrices(self) -> list[Tensor]:
        """Its weight as matrices `(d_out, d)`, one for each group; views."""
        return [w.reshape(len(w), -1) for w in self.weight.detach().chunk(self.groups)]

    @torch.no_grad()
    def write(self, matrices: Sequence[Tensor]) -> None:
        """Replace the weight."""
        self.weight.copy_(torch.cat(list(matrices)).reshape(self.weight.shape))


def layers(model: nn.Module, select: str | Sequence[str] = "last") -> list[Layer]:
    """The layers of a model that edits can go to.

    Args:
        model: Any module; attention written with linear layers needs nothing special.
        select: "last" (the classifier), "all", a name, a pattern such as "layer3.*", or several of them.

    Raises:
        ValueError: If nothing matches.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is None:
                raise ValueError(f"{name} projects inputs of different widths; name its layers one by one")
            found.append(Layer(name, module))
        elif isinstance(module, nn.Linear | nn.Conv2d) and not _inside(name, found):
            found.append(Layer(name, module))
    if not found:
        raise ValueError("the model has no linear, convolutional or attention layer")
    if select == "last":
        return found[-1:]
    if select == "all":
        return found
    patterns = [select] if isinstance(select, str) else list(select)
    chosen = [layer for layer in found if any(fnmatch(layer.name, p) for p in patterns)]
    if not chosen:
        raise ValueError(f"no layer matches {', '.join(patterns)}; there are {', '.join(y.name for y in found)}")
    return chosen


def _inside(name: str, found: Sequence[Layer]) -> bool:
    """Whether a module is the output projection within `nn.MultiheadAttention`, which is never called itself."""
    return any(isinstance(y.module, nn.MultiheadAttention) and name.startswith(y.name + ".") for y in found)


@contextmanager
def watching(chosen: Sequence[Layer], see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Call `see(layer, input)` whenever one of the layers runs."""
    handles = []
    for layer in chosen:

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], layer: Layer = layer) -> None:
            x = args[0] if args else kwargs["query"]
            if isinstance(module, nn.MultiheadAttention):
                others = [*args[1:3], *(kwargs[k] for k in ("key", "value") if k in kwargs)]
                if any(o is not x for o in others):
                    raise ValueError(f"{layer.name} attends to something else than its input; only self-attention")
            see(layer, x.detach())

        handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, each module's own mode restored at the end."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a model's first parameter."""
    first = next(model.parameters())
    return first.device, first.dtype


@torch.no_grad()
def collect(model: nn.Module, chosen: Sequence[Layer], x: Tensor, *, batch: int = 256) -> dict[str, list[SecondMoment]]:
    """Moments of what some layers read for inputs `x`, in evaluation mode.

    Mergeable: moments of parts of the data, on whatever process, add up to those of the whole.

    Args:
        model: The model the layers are of.
        chosen: Its layers.
        x: `(n, …)` inputs.
        batch: Inputs at once.

    Raises:
        ValueError: If there are no inputs, or a layer did not run.
    """
    if not len(x):
        raise ValueError("there are no inputs to gather features from")
    totals: dict[str, list[SecondMoment]] = {}

    def see(layer: Layer, rows: Tensor) -> None:
        new = layer.moments(rows)
        old = totals.get(layer.name)
        totals[layer.name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

    device, dtype = place(model)
    with evaluating(model), watching(chosen, see):
        for part in x.split(batch):
            model(part.to(device, dtype))
    missing = [y.name for y in chosen if y.name not in totals]
    if missing:
        raise ValueError(f"the layer {missing[0]} does not run in a forward pass")
    return totals


def gathered(moments: Mapping[str, Sequence[SecondMoment]]) -> dict[str, list[SecondMoment]]:
    """The sum of all processes' moments under `accelerate launch`; each gives those of its part of the data."""
    from accelerate import PartialState
    from accelerate.utils import reduce

    device = PartialState().device

    def whole(moment: SecondMoment) -> SecondMoment:
        count = torch.tensor([moment.count], dtype=torch.float64)
        gram, total, counts = (reduce(t.to(device), "sum").cpu() for t in (moment.gram, moment.total, count))
        return SecondMoment(gram, total, float(counts))

    return {name: [whole(m) for m in groups] for name, groups in moments.items()}


def edited(model: nn.Module, edits: Mapping[str, Sequence[LowRankEdit]]) -> nn.Module:
    """A copy of a model with `W T` in the named layers; biases and norms as they were."""
    new = copy.deepcopy(model)
    for layer in layers(new, "all"):
        if layer.name in edits:
            layer.write([e.apply_to_weight(w) for e, w in zip(edits[layer.name], layer.matrices(), strict=True)])
    return new
