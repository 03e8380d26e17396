"""What a method gives the loop: what moves, by which loss, and what has changed at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from erase_sd.algebra.options import within

Factors = Mapping[str, tuple[Tensor, Tensor]]
Layers = Literal["cross-attention", "other", "all"]


@dataclass(frozen=True)
class Options:
    """What every trained method has.

    Attributes:
        steps: Gradient steps.
        lr: Learning rate, constant.
        batch: Samples a step.
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1

    def __post_init__(self) -> None:
        within("steps", self.steps, 0)
        within("lr", self.lr, 0)
        within("batch", self.batch, 1)


@dataclass(frozen=True)
class DrawnOptions(Options):
    """Options of methods that learn from pictures.

    Attributes:
        images: Pictures of each side, drawn by the model itself where no folder gives them.
        draw_steps: Denoising steps of each.
    """

    images: int = 8
    draw_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        within("images", self.images, 1)
        within("draw_steps", self.draw_steps, 1)


@dataclass(frozen=True, eq=False)
class Lesson:
    """One training, ready for the loop.

    Attributes:
        parameters: What moves, by name.
        loss: A step's loss; every random number comes from its generator, which is on the CPU.
        changed: The denoiser's tensors that differ now, by name in its state dict.
        weight_decay: Of AdamW; 0 is Adam.
        clip: Largest norm of the gradient; None for no limit.
        masks: Factors of some parameters' gradients.
        factors: Of a LoRA: `(down (r, d_in), up (d_out, r))` by module, scale in `up`; None
            for methods that make none.
        close: Undo what watches the network.
    """

    parameters: Mapping[str, nn.Parameter]
    loss: Callable[[torch.Generator], Tensor]
    changed: Callable[[], Mapping[str, Tensor]]
    weight_decay: float = 0.0
    clip: float | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Callable[[], Factors] | None = None
    close: Callable[[], None] = lambda: None


def moving(network: nn.Module, layers: Layers) -> dict[str, nn.Parameter]:
    """The parameters of some layers, the only ones of the network that want a gradient now.

    "other" leaves out what ESD's code leaves out: cross-attention, the time embedding and the last
    convolution.

    Args:
        network: A denoiser of diffusers.
        layers: Which.

    >>> names = moving(nn.ModuleDict({"attn2": nn.Linear(1, 1), "conv": nn.Linear(1, 1)}), "other")
    >>> list(names)
    ['conv.weight', 'conv.bias']
    """
    apart = ("conv_out.", "conv_norm_out.", "time_embedding.")

    def taken(name: str) -> bool:
        cross = "attn2" in name.split(".")
        if layers == "other":
            return not cross and not name.startswith(apart)
        return cross or layers == "all"

    for name, p in network.named_parameters():
        p.requires_grad_(taken(name))
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The parameters' values, as they are now."""
    return {name: p.detach().clone() for name, p in parameters.items()}
