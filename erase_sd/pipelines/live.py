"""Erasures on a live denoiser: apply, change strength, stack, restore bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from erase_sd.erasure import Erasure, WrongBase, combine
from erase_sd.sites import POOLED, TOKENS, identify
from erase_sd.text import TextEncoder

_ATTRIBUTE = "_erase_sd_live"


class LiveErasure:
    """What is erased from one denoiser right now, and the weights to put back.

    Weights are always computed from the originals, so nothing accumulates: applying and removing in
    any order ends in the same bits.
    """

    def __init__(self, denoiser: nn.Module, *, runtime: bool = False) -> None:
        config = dict(denoiser.config)  # type: ignore[arg-type]
        config.setdefault("_class_name", type(denoiser).__name__)
        self.architecture = identify(config)
        self.denoiser = denoiser
        # The parameters themselves, not their names: loading a LoRA renames modules around them.
        parameters = {n.replace(".base_layer.", "."): p for n, p in denoiser.named_parameters()}
        self.sites = self.architecture.sites(n for n in parameters if ".lora_" not in n)
        self.parameters = {n: parameters[n] for n in self.sites}
        self.runtime = runtime
        self.strength = 1.0
        self.erasures: list[Erasure] = []
        self._originals: dict[str, Tensor] = {}
        self._hook: Any = None

    @classmethod
    def of(cls, pipe: Any, *, runtime: bool | None = None) -> LiveErasure:
        """The live erasure of a pipeline (or denoiser), made on first use.

        Args:
            pipe: A pipeline or its denoiser.
            runtime: Edit the prompt's embeddings on their way in instead of the weights: the same
                images, nothing to undo, and it works where weights cannot be written (quantised,
                offloaded, compiled). None keeps the mode it has.

        Raises:
            ValueError: If the other mode is in use.
        """
        denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None) or pipe
        live = getattr(denoiser, _ATTRIBUTE, None)
        if live is None:
            live = cls(denoiser, runtime=bool(runtime))
            object.__setattr__(denoiser, _ATTRIBUTE, live)  # not a sub-module
        if runtime is not None and runtime != live.runtime:
            if live.erasures:
                raise ValueError("erasures are applied in the other mode; remove them before changing it")
            live.runtime = runtime
        return live

    def originals(self) -> dict[str, Tensor]:
        """The base weights of every site, whether or not they are erased now."""
        return {n: self._originals.get(n, p.data) for n, p in self.parameters.items()}

    def add(self, erasure: Erasure, *, allow_other_base: bool = False) -> None:
        """Apply one more erasure; all that are applied act jointly."""
        originals = self.originals()
        if erasure.architecture != self.architecture.name:
            raise WrongBase(f"this erasure is for {erasure.architecture}, the model is {self.architecture.name}")
        width = next(w.shape[1] for n, w in originals.items() if self.architecture.stream(n) == TOKENS)
        if erasure.edit.width != width:
            raise WrongBase(f"this erasure is for text features of width {erasure.edit.width}, the model has {width}")
        if not allow_other_base:
            erasure.check_base({n: originals[n] for n in originals})
        self.set([*self.erasures, erasure], self.strength)

    def take(self, erasure: Erasure | None = None) -> None:
        """Remove one erasure, or all: the weights are again what they were, bit for bit."""
        if erasure is not None and erasure not in self.erasures:
            raise ValueError("this erasure is not applied here")
        self.set([e for e in self.erasures if erasure is not None and e is not erasure], self.strength)

    def set_strength(self, strength: float) -> None:
        """Set the strength of everything applied: 0 is the original, 1 as made."""
        self.set(self.erasures, strength)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model as it was, for a while."""
        strength = self.strength
        self.set_strength(0)
        try:
            yield
        finally:
            self.set_strength(strength)

    @torch.no_grad()
    def set(self, erasures: Sequence[Erasure], strength: float = 1.0) -> None:
        """Apply these erasures, whatever was applied before; their base is not checked.

        All new weights are computed first, which may refuse, and only then is the model changed.
        """
        erasures = list(erasures)
        if self.runtime:
            self._set_hook(erasures, strength)
            self.erasures, self.strength = erasures, strength
            return
        bases = self.originals()
        new: dict[str, Tensor] = {}
        if erasures and strength:
            new = combine(erasures).scaled(strength).weights(bases, allow_other_base=True)
        for name, parameter in self.parameters.items():
            if name in new:
                self._originals.setdefault(name, parameter.data.clone())
                parameter.data.copy_(new[name])
            elif name in self._originals:
                parameter.data.copy_(self._originals.pop(name))
        self.erasures, self.strength = erasures, strength

    def _set_hook(self, erasures: list[Erasure], strength: float) -> None:
        """Let the denoiser see `T x` instead of each text feature `x`."""
        edits = {}
        if erasures and strength:
            total = combine(erasures).scaled(strength)
            if total.kinds != "kv":
                raise ValueError(f"runtime mode edits keys and values alike; this method edits {total.kinds!r} alone")
            edits = total.edits
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if not edits:
            return

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            kwargs = dict(kwargs)
            if len(args) > 2:  # UNet2DConditionModel's third; pipelines name it
                args = (*args[:2], edits[TOKENS].features(args[2]), *args[3:])
            else:
                kwargs["encoder_hidden_states"] = edits[TOKENS].features(kwargs["encoder_hidden_states"])
            if POOLED in edits:
                added = dict(kwargs.get("added_cond_kwargs") or {})
                if "text_embeds" in added:
                    kwargs["added_cond_kwargs"] = added | {"text_embeds": edits[POOLED].features(added["text_embeds"])}
                else:
                    kwargs["pooled_projections"] = edits[POOLED].features(kwargs["pooled_projections"])
            return args, kwargs

        self._hook = self.denoiser.register_forward_pre_hook(hook, with_kwargs=True)


def apply(pipe: Any, erasure: Erasure, *, allow_other_base: bool = False, runtime: bool | None = None) -> LiveErasure:
    """Apply an erasure to a live pipeline.

    Args:
        pipe: A diffusers pipeline or its denoiser.
        erasure: What to apply.
        allow_other_base: Apply it although the base weights differ from those it was made for.
        runtime: Edit the prompt's embeddings on their way in and no weight; see `LiveErasure.of`.

    Raises:
        WrongBase: If the base differs.
    """
    live = LiveErasure.of(pipe, runtime=runtime)
    if not allow_other_base and getattr(pipe, "text_encoder", None) is not None:
        erasure.check_text_encoder(TextEncoder.of(pipe).fingerprint)
    live.add(erasure, allow_other_base=allow_other_base)
    return live


def remove(pipe: Any, erasure: Erasure | None = None) -> None:
    """Take an erasure, or all, out of a live pipeline; the weights return bit for bit."""
    LiveErasure.of(pipe).take(erasure)
