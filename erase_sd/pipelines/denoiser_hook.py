"""An erasure as one of diffusers' own hooks of a model."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from erase_sd.artifact.erasure import Erasure
from erase_sd.pipelines.live import LiveErasure

NAME = "erase_sd"


class ErasureHook(ModelHook):  # type: ignore[misc]
    """Erases from a denoiser by itself: no weight is written, and taking it off leaves nothing.

    It is run-time mode (`LiveErasure`) in diffusers' terms. A transformer's text states are edited
    at the matrix that reads them: what the network is given stays what it was, tensor by tensor,
    which is how caches of text know it.

    Args:
        erasure: What to erase.
        allow_other_base: Erase although the weights differ from those it was made for, as
            quantised ones do.

    >>> hook = ErasureHook(erasure)                                             # doctest: +SKIP
    >>> registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer) # doctest: +SKIP
    >>> registry.register_hook(hook, "erase_sd")                                # doctest: +SKIP
    >>> registry.remove_hook("erase_sd")                                        # doctest: +SKIP
    """

    def __init__(self, erasure: Erasure, *, allow_other_base: bool = False) -> None:
        super().__init__()
        self.erasure, self.allow_other_base = erasure, allow_other_base

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        """Begin; the registry calls this.

        Raises:
            WrongBase: If the erasure is for another model.
            ValueError: If the denoiser's weights are edited already.
        """
        live = LiveErasure.of(module, runtime=True)
        live.add(self.erasure, allow_other_base=self.allow_other_base)
        _forget_text(module)
        return module

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:
        """End; the registry calls this, by the name that diffusers gives it."""
        LiveErasure.of(module).take(self.erasure)
        _forget_text(module)
        return module


def _forget_text(module: Any) -> None:
    """What caches hold of text was read with, or without, what has just changed."""
    HookRegistry.check_if_exists_or_initialize(module).reset_stateful_hooks()


def hook_erasure(denoiser: nn.Module, erasure: Erasure, *, allow_other_base: bool = False) -> None:
    """Register an `ErasureHook`; `HookRegistry.remove_hook("erase_sd")` takes it off.

    Args:
        denoiser: A U-Net or transformer of diffusers.
        erasure: What to erase.
        allow_other_base: See `ErasureHook`.

    Raises:
        WrongBase: If the erasure is for another model.
        ValueError: If one is registered already: register the sum of both.
    """
    hook = ErasureHook(erasure, allow_other_base=allow_other_base)
    HookRegistry.check_if_exists_or_initialize(denoiser).register_hook(hook, NAME)
