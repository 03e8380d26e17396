"""The networks of a live pipeline that read text: one, or two that take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from erase_sd.models.architectures import SECOND, Architecture, identify


def denoisers_of(pipe: Any) -> dict[str, Any]:
    """The denoiser of a pipeline (or the denoiser itself), or both of two.

    Without what `torch.compile` wraps around it.

    Returns:
        The networks by what the names of their tensors begin with, see `Site`.
    """
    parts = {"": ("unet", "transformer"), SECOND: ("transformer_2",)}
    found = {
        prefix: getattr(network, "_orig_mod", network)
        for prefix, names in parts.items()
        for name in names
        if (network := getattr(pipe, name, None)) is not None  # a compiled one has no truth value
    }
    return found or {"": getattr(pipe, "_orig_mod", pipe)}


def kind_of(networks: Mapping[str, nn.Module]) -> Architecture:
    """What some networks are.

    Raises:
        ValueError: If they are of no known kind, or two of unlike kinds.
    """
    kinds = []
    for network in networks.values():
        config = dict(network.config)  # type: ignore[arg-type]
        config.setdefault("_class_name", type(network).__name__)
        kinds.append(identify(config))
    if kinds[-1] is not kinds[0]:
        raise ValueError(
            f"expected two networks of one kind, got {kinds[0].name} and {kinds[-1].name}"
        )
    return kinds[0]
