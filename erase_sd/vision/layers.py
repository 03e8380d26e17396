"""Layers of a classifier that an edit can go to.

Their features, gathered by hooks, and their weights.
"""

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
from torch.func import functional_call

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment
from erase_sd.vision.samples import Pictures

ROWS = 1 << 24  # numbers in one chunk of unfolded patches: 128 MB in float64


@dataclass(frozen=True)
class Layer:
    """A linear, convolutional or attention layer, by its name in the model.

    A convolution's kernel is flattened to `(C_out, C_in k k)` and its features are the patches that
    it reads: with its own stride, padding, dilation and groups. Each group has features of its own.
    `nn.MultiheadAttention` is two layers: its joint input projection under the module's own name,
    and `….out_proj`, which torch never calls as a module.

    Attributes:
        name: In the model.
        module: Whose weight it is.
        runs: The module whose call shows what the layer reads: itself, or the attention around an
            `out_proj`.
    """

    name: str
    module: nn.Module
    runs: nn.Module | None = None

    @property
    def groups(self) -> int:
        """How many independent weight matrices it has: more than one for grouped convolutions."""
        return self.module.groups if isinstance(self.module, nn.Conv2d) else 1

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that an edit changes."""
        module: Any = self.module
        if not isinstance(module, nn.MultiheadAttention):
            weight: nn.Parameter = module.weight
            return weight
        if module.in_proj_weight is None:
            raise ValueError(
                f"{self.name} projects inputs of different widths; only self-attention can be "
                f"edited: expected layers without it"
            )
        return module.in_proj_weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The parameter that is added to its output, if it has one."""
        name = "in_proj_bias" if isinstance(self.module, nn.MultiheadAttention) else "bias"
        bias: nn.Parameter | None = getattr(self.module, name)
        return bias

    @property
    def width(self) -> int:
        """Width `d` of its features."""
        return self.weight[0].numel()

    @property
    def watched(self) -> nn.Module:
        """The module whose call shows what it reads."""
        return self.runs if self.runs is not None else self.module

    def input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What it reads in a call of `watched` with these arguments.

        Raises:
            ValueError: If attention reads keys or values of something else than its query.
        """
        x: Tensor = args[0] if args else kwargs.get("query", kwargs.get("input"))
        module = self.watched
        if not isinstance(module, nn.MultiheadAttention):
            return x
        others = [*args[1:3], *(kwargs[k] for k in ("key", "value") if k in kwargs)]
        if any(o is not x for o in others):
            raise ValueError(
                f"{self.name} attends to something else than its input; only self-attention can be "
                f"edited: expected layers without it"
            )
        if self.runs is None:
            return x
        # With the identity for an output projection, attention returns what its projection reads.
        width = self.width
        plain = {"out_proj.weight": torch.eye(width).to(x)}
        if module.out_proj.bias is not None:
            plain["out_proj.bias"] = torch.zeros(width).to(x)
        context: Tensor = functional_call(module, plain, args, dict(kwargs))[0]
        return context

    def rows(self, x: Tensor) -> Iterator[list[Tensor]]:
        """What it reads for inputs `x`, in chunks: for each group rows `(n, d)`."""
        module = self.module
        if not isinstance(module, nn.Conv2d):
            for chunk in torch.split(x, max(1, ROWS // max(1, x[:1].numel()))):
                yield [chunk.reshape(-1, x.shape[-1])]
            return
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pad = module._reversed_padding_repeated_twice  # the layer's own, "same" included
        where: Any = {"dilation": module.dilation, "stride": module.stride}
        x = F.pad(x, pad, mode=mode) if any(pad) else x
        size = max(1, ROWS // max(1, x[0].numel() * module.kernel_size[0] * module.kernel_size[1]))
        for chunk in torch.split(x, size):
            patches = F.unfold(chunk, module.kernel_size, **where)  # (n, C k k, L)
            parts = patches.chunk(self.groups, dim=1)
            yield [g.transpose(1, 2).reshape(-1, self.width) for g in parts]

    def places(self, x: Tensor) -> int:
        """How many rows it reads of each of the inputs `x`."""
        module = self.module
        if not isinstance(module, nn.Conv2d):
            return x[0].numel() // self.width
        pad = module._reversed_padding_repeated_twice
        count = 1
        for axis, size in enumerate(x.shape[-2:]):
            whole = size + sum(pad[2 - 2 * axis : 4 - 2 * axis])
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
            count *= (whole - reach) // module.stride[axis] + 1
        return count

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


def layers(
    model: nn.Module, select: str | Sequence[str] = "all", sample: Tensor | Pictures | None = None
) -> list[Layer]:
    """The layers of a model that edits can go to.

    Args:
        model: Any module; attention written with linear layers needs nothing special.
        select: "all", "last" (the layer that runs last), "middle" (the middle third of those that
            run), a name, a pattern such as "layer3.*", or several of them.
        sample: An input or more; the first shows in which order the layers run. "last" and "middle"
            need it, since the order in which modules are registered is not the order in which they
            run.

    Raises:
        ValueError: If nothing matches, or "last" or "middle" is asked without a sample.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> [layer.name for layer in layers(net, "last", torch.zeros(1, 4))]
    ['2']
    """
    found = _editable(model)
    if not found:
        raise ValueError("the model has no linear, convolutional or attention layer")
    if select == "all":
        return found
    if select in ("last", "middle"):
        if sample is None:
            raise ValueError(f"expected an input to tell which layers are {select!r}, got none")
        ran = in_order(model, sample)
        third = len(ran) // 3
        return ran[-1:] if select == "last" else ran[third : max(third + 1, 2 * third)]
    patterns = [select] if isinstance(select, str) else list(select)
    chosen = [layer for layer in found if any(fnmatch(layer.name, p) for p in patterns)]
    if not chosen:
        names = ", ".join(y.name for y in found)
        raise ValueError(f"no layer matches {', '.join(patterns)}; there are {names}")
    return chosen


def _editable(model: nn.Module) -> list[Layer]:
    """All of them, in the order in which they are registered."""
    found: list[Layer] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            dotted = f"{name}.out_proj" if name else "out_proj"
            found += [Layer(name, module), Layer(dotted, module.out_proj, runs=module)]
            inside.add(module.out_proj)
        elif isinstance(module, nn.Linear | nn.Conv2d) and module not in inside:
            found.append(Layer(name, module))
    return found


def in_order(model: nn.Module, sample: Tensor | Pictures) -> list[Layer]:
    """The layers that run on an input, by when they last did."""
    found = _editable(model)
    seen: list[str] = []
    device, dtype = place(model)

    def noting(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: seen.append(name)

    # What they read does not matter here: attention that no edit can take may stand among them.
    handles = [y.watched.register_forward_pre_hook(noting(y.name)) for y in found]
    try:
        with torch.no_grad(), evaluating(model):
            model(sample[torch.tensor([0])].to(device, dtype))
    finally:
        for handle in handles:
            handle.remove()
    last = {name: i for i, name in enumerate(seen)}
    return sorted((y for y in found if y.name in last), key=lambda y: last[y.name])


@contextmanager
def watching(chosen: Sequence[Layer], see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Call `see(layer, input)` whenever one of the layers runs."""
    handles = []
    busy: list[bool] = []  # looking into attention calls it once more

    for layer in chosen:

        def hook(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: Mapping[str, Any],
            layer: Layer = layer,
        ) -> None:
            if busy:
                return
            busy.append(True)
            try:
                see(layer, layer.input(args, kwargs).detach())
            finally:
                busy.clear()

        handles.append(layer.watched.register_forward_pre_hook(hook, with_kwargs=True))
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


def edited(model: nn.Module, edits: Mapping[str, Sequence[LowRankEdit]]) -> nn.Module:
    """A copy of a model with `W T` in the named layers; biases and norms as they were."""
    new = copy.deepcopy(model)
    for layer in layers(new):
        if layer.name in edits:
            pairs = zip(edits[layer.name], layer.matrices(), strict=True)
            layer.write([e.apply_to_weight(w) for e, w in pairs])
    return new
