"""Erasures on a live denoiser: apply, change the scale, stack, restore bit for bit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from erase_sd.artifact.base import WrongBase, check_scale
from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.models.architectures import SECOND, TOKENS, Site
from erase_sd.pipelines.hooks import FeatureHook, SiteHook
from erase_sd.pipelines.networks import denoisers_of, kind_of
from erase_sd.pipelines.sketch import differs, sketch
from erase_sd.text.encoder import TextEncoder

logger = logging.getLogger("erase_sd")

_ATTRIBUTE = "_erase_sd_live"
_MAKING = threading.Lock()


class LiveErasure:
    """What is erased from a model right now, and the weights to put back.

    Both networks of a model that draws with two are edited alike.

    Weights are always computed from the originals, so nothing accumulates: applying and removing in
    any order ends in the same bits. Every change happens whole or not at all, one thread at a time.

    A copy or pickle of the denoiser takes the originals along; `save_pretrained` does not.
    """

    def __init__(self, networks: Mapping[str, nn.Module], *, runtime: bool = False) -> None:
        self.architecture = kind_of(networks)
        self.networks = dict(networks)
        self.runtime = runtime
        self.scale = 1.0
        self._lock = threading.RLock()
        self._erasures: list[Erasure] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._originals: dict[str, Tensor] = {}
        self._written: dict[str, Tensor] = {}  # sketches: has somebody else written since?
        self._handles: list[Any] = []
        self._find()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}  # locks cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @classmethod
    def of(cls, pipe: Any, *, runtime: bool | None = None) -> LiveErasure:
        """The live erasure of a pipeline (or its one denoiser), made on first use.

        Args:
            pipe: A pipeline or its denoiser.
            runtime: Edit features and outputs as they pass instead of the weights: the same images,
                nothing to undo, and it works where weights cannot be written (quantised).
                None keeps the mode it has.

        Raises:
            ValueError: If the other mode is in use, the denoiser is of no known kind, or one of
                two networks is erased without the other.
        """
        networks = denoisers_of(pipe)
        with _MAKING:
            lives = {id(found): found for n in networks.values() if (found := _live(n)) is not None}
            live = next(iter(lives.values()), None)
            if live is None or (live.networks != networks and not live.erasures):
                live = cls(networks, runtime=bool(runtime))
                for network in networks.values():
                    object.__setattr__(network, _ATTRIBUTE, live)  # not a sub-module
            elif live.networks != networks or len(lives) > 1:
                raise ValueError(
                    "one of this model's two networks is erased by itself, or with another; take "
                    "that out first, and erase the pipeline"
                )
        if runtime is not None and runtime != live.runtime:
            if live.erasures:
                told = "erasures are applied in the other mode; remove them before changing it"
                raise ValueError(told)
            live.runtime = runtime
        return live

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        """What is applied now."""
        with self._lock:
            self._find()
            return tuple(self._erasures)

    @property
    def sites(self) -> list[Site]:
        """The tensors that read text."""
        with self._lock:
            self._find()
            return self.architecture.sites(self._parameters)

    def originals(self) -> dict[str, Tensor]:
        """The base weights of every site, whether or not they are erased now.

        Raises:
            ValueError: If they are not in memory.
        """
        with self._lock:
            self._find()
            if any(p.is_meta for p in self._parameters.values()):
                raise ValueError(
                    "the weights are offloaded: erase before enable_sequential_cpu_offload()"
                )
            return {n: self._originals.get(n, p.data) for n, p in self._parameters.items()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the sites as the denoiser uses them now."""
        with self._lock:
            self._find()
            return dict(self._parameters)

    def _find(self) -> None:
        """Look up the parameters that the denoiser really uses.

        If they were replaced, nothing is erased any more.
        """
        found = {}
        for prefix, network in self.networks.items():
            for name, parameter in network.named_parameters():
                # Loading a LoRA renames modules around them.
                plain = prefix + name.replace(".base_layer.", ".")
                if ".lora_" not in name and self.architecture.site(plain):
                    found[plain] = parameter
        modules = (m for network in self.networks.values() for m in network.modules())
        if not found or any(getattr(m, "fused_projections", False) for m in modules):
            raise ValueError(
                "this denoiser's key and value projections are fused; call "
                "unfuse_qkv_projections() before erasing"
            )
        replaced = [n for n, p in self._parameters.items() if found.get(n) is not p]
        if replaced and self._originals:
            logger.warning(
                "the model's weights were replaced from outside: what was erased is in it no more"
            )
            self._originals, self._erasures, self._written = {}, [], {}
        self._parameters = found

    # -- changing it ------------------------------------------------------------------------------

    def add(self, erasure: Erasure, *, allow_other_base: bool = False) -> None:
        """Apply one more erasure; all that are applied act jointly.

        Raises:
            WrongBase: If it is for another architecture, width or base.
        """
        with self._lock:
            originals = self.originals()
            if erasure.architecture != self.architecture.name:
                raise WrongBase(
                    f"this erasure is for {erasure.architecture}, the model is "
                    f"{self.architecture.name}"
                )
            width = next(w.shape[1] for n, w in originals.items() if _stream(self, n) == TOKENS)
            if erasure.edit.width != width:
                raise WrongBase(
                    f"this erasure is for text features of width {erasure.edit.width}, the model "
                    f"has {width}"
                )
            if not allow_other_base:
                erasure.check_base(originals)
            self.set([*self._erasures, erasure], self.scale)

    def take(self, erasure: Erasure | None = None) -> None:
        """Remove one erasure, or all, bit for bit; ValueError if it is not applied."""
        with self._lock:
            applied = self.erasures
            if erasure is not None and erasure not in applied:
                raise ValueError("this erasure is not applied here")
            self.set([e for e in applied if erasure is not None and e is not erasure], self.scale)

    def set_scale(self, scale: float) -> None:
        """Multiply the change that everything applied makes: 0 is the original, 1 as made.

        Raises:
            ValueError: If the scale is not a number between −10 and 10.
        """
        with self._lock:
            self.set(self.erasures, scale)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model as it was, for a while."""
        with self._lock:
            scale = self.scale
            self.set_scale(0)
            try:
                yield
            finally:
                self.set_scale(scale)

    def set(self, erasures: Sequence[Erasure], scale: float = 1.0) -> None:
        """Apply these erasures, whatever was applied before; their base is not checked.

        New weights are computed first; a refusal or an interruption leaves the model as it was.
        """
        check_scale(scale)
        with self._lock:
            self._find()
            total = combine(list(erasures)).scaled(scale) if erasures and scale else None
            if self.runtime:
                self._set_hooks(total)
            else:
                originals = self.originals()
                self._set_weights(total.edit_weights(originals) if total else {})
            self._erasures, self.scale = list(erasures), scale

    @torch.no_grad()
    def _set_weights(self, new: Mapping[str, Tensor]) -> None:
        changed = [n for n, s in self._written.items() if differs(self._parameters[n], s)]
        if changed:
            raise ValueError(
                f"{len(changed)} erased weights were written by somebody else since, as "
                "fuse_lora() does: undo that first (unfuse_lora()), or its undoing would spoil them"
            )
        before: dict[str, Tensor] = {}
        originals = dict(self._originals)
        try:
            for name, parameter in self._parameters.items():
                if name not in new and name not in self._originals:
                    continue
                before[name] = parameter.data.clone()
                if name in new:
                    self._originals.setdefault(name, before[name])
                    parameter.data.copy_(new[name])
                else:
                    parameter.data.copy_(self._originals.pop(name))
        except BaseException:  # an interrupt as well: all or nothing
            for name, value in before.items():
                self._parameters[name].data.copy_(value)
            self._originals = originals
            raise
        self._written = {n: sketch(self._parameters[n]) for n in new}

    def _set_hooks(self, total: Erasure | None) -> None:
        handles: list[Any] = []
        if total is not None:
            if total.left or total.kinds != "kv" or self.architecture.denoiser != "unet":
                for site in total.editable(self._parameters):
                    network = self.networks[SECOND if site.second else ""]
                    module = network.get_submodule(site.module.removeprefix(SECOND))
                    handles.append(module.register_forward_hook(SiteHook(total.edit_of(site))))
            else:
                edits = {s: e.scaled(total.scale) for s, e in total.right.items()}
                handles += [
                    network.register_forward_pre_hook(FeatureHook(edits), with_kwargs=True)
                    for network in self.networks.values()
                ]
        for handle in self._handles:
            handle.remove()
        self._handles = handles


def _live(network: Any) -> LiveErasure | None:
    return getattr(network, _ATTRIBUTE, None)


def _stream(live: LiveErasure, name: str) -> str | None:
    site = live.architecture.site(name)
    return site.stream if site else None


def apply_to_pipeline(
    pipe: Any, erasure: Erasure, *, allow_other_base: bool = False, runtime: bool | None = None
) -> LiveErasure:
    """Apply an erasure to a live pipeline.

    Args:
        pipe: A diffusers pipeline or its denoiser.
        erasure: What to apply.
        allow_other_base: Apply it although the base weights differ from those it was made for.
        runtime: Edit features and outputs as they pass and no weight; see `LiveErasure.of`.

    Raises:
        WrongBase: If the base differs.
    """
    live = LiveErasure.of(pipe, runtime=runtime)
    if not allow_other_base and getattr(pipe, "text_encoder", None) is not None:
        erasure.check_text_encoder(TextEncoder.of(pipe).fingerprint)
    live.add(erasure, allow_other_base=allow_other_base)
    return live


def restore_pipeline(pipe: Any, erasure: Erasure | None = None) -> None:
    """Take an erasure, or all, out of a live pipeline; the weights return bit for bit."""
    LiveErasure.of(pipe).take(erasure)
