"""Concept erasure in A1111 and Forge: copy the folder above into `extensions/`.

Errors of an extension do not stop these programs: they would draw on, with nothing erased. So what
cannot be erased makes the network itself refuse, and the page says why.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from modules import paths, script_callbacks, scripts, shared

from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.artifact.hosted import PREFIX, check_fits, text_keys
from erase_sd.pipelines.hooks import SiteHook

FOLDER = Path(paths.models_path) / "erasures"
WANTED = "erase_sd"  # of a job: what should be erased from its pictures
FILES, SCALE, CONCEPTS = "Erasure files", "Erasure scale", "Erased concepts"  # of the infotext


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a job should draw without.

    Attributes:
        files: Names of erasure files.
        scale: What multiplies the change.
        other: Whether a model will do that they were not made for.
    """

    files: tuple[str, ...]
    scale: float = 1.0
    other: bool = False

    def erasure(self) -> Erasure:
        """All of them as one.

        Raises:
            ValueError: If none is chosen, or one cannot be read.
        """
        if not self.files:
            raise ValueError(f"expected an erasure file chosen from {FOLDER}, got none")
        return combine([Erasure.load(FOLDER / Path(f).name) for f in self.files]).scaled(self.scale)


@dataclass(eq=False)
class Attached:
    """What is erased from which network right now."""

    wanted: Wanted | None = None
    network: Any = None
    handles: list[Any] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    def set(self, wanted: Wanted | None) -> None:
        """Erase this and nothing else from the network that is about to draw."""
        network, patcher = _network() if wanted else (None, None)
        if wanted is self.wanted and network is self.network:
            return
        for handle in self.handles:
            handle.remove()
        self.wanted, self.network, self.handles, self.told = wanted, network, [], {}
        if wanted is None:
            return
        try:
            erasure = wanted.erasure()
            sites = _sites(network)
            weights = {name: _stored(module, key, patcher) for name, (key, module) in sites.items()}
            check_fits(erasure, weights, allow_other_base=wanted.other)
            for site in erasure.editable(weights):
                hook = SiteHook(erasure.edit_of(site))
                self.handles.append(sites[site.name][1].register_forward_hook(hook))
            told = [wanted.files, [f"{wanted.scale:g}"], erasure.names]
            self.told = dict(zip((FILES, SCALE, CONCEPTS), map("; ".join, told), strict=True))
        except Exception as error:  # whatever it is, nothing may be drawn as if it were not
            self.handles.append(network.register_forward_pre_hook(_refusal(error)))


ATTACHED = Attached()


def _network() -> tuple[Any, Any]:
    """The U-Net that is about to draw and, in Forge, what patches it."""
    patcher = getattr(getattr(shared.sd_model, "forge_objects", None), "unet", None)
    holder = patcher.model if patcher is not None else shared.sd_model.model
    return holder.diffusion_model, patcher


def _sites(network: Any) -> dict[str, tuple[str, Any]]:
    """Key and module of every tensor that reads text, by diffusers name."""
    modules = {f"{PREFIX}{name}.weight": module for name, module in network.named_modules()}
    return {name: (key, modules[key]) for name, key in text_keys(modules).items()}


def _stored(module: Any, key: str, patcher: Any) -> Any:
    """A weight as the checkpoint has it: both programs put LoRAs in and keep a copy of it."""
    if patcher is not None:
        return patcher.lora_loader.backup.get(key, module.weight)
    kept = getattr(module, "network_weights_backup", None)
    return module.weight if kept is None else kept


def _refusal(error: Exception) -> Any:
    def refuse(*_: Any) -> None:
        raise RuntimeError(f"nothing was drawn, since nothing could be erased: {error}") from error

    return refuse


def follow(params: Any) -> None:
    """Before each step: erase what this job wants from the network of this step.

    A refiner and the high-resolution pass may bring another one.
    """
    job = params.denoiser.p
    if hasattr(job, WANTED):  # else it is within another job, such as a detailer's
        ATTACHED.set(getattr(job, WANTED))
        job.extra_generation_params.update(ATTACHED.told)


script_callbacks.on_cfg_denoiser(follow)


def choices() -> list[str]:
    """The files that are there."""
    return sorted(path.name for path in FOLDER.glob("*.safetensors"))


class Script(scripts.Script):
    """The box on the page."""

    def title(self) -> str:
        """Its name."""
        return "Erase concepts"

    def show(self, is_img2img: bool) -> Any:
        """On both pages, always."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """A checkbox, the files, the scale, and whether another model will do."""
        os.makedirs(FOLDER, exist_ok=True)
        with gr.Accordion(self.title(), open=False):
            enabled = gr.Checkbox(False, label="Draw without these concepts")
            files = gr.Dropdown(
                choices(), value=[], multiselect=True, label=f"Erasures in {FOLDER}"
            )
            scale = gr.Slider(0.0, 2.0, value=1.0, step=0.05, label="Scale")
            other = gr.Checkbox(False, label="Also on a model they were not made for")
        self.infotext_fields = [
            (enabled, lambda told: FILES in told),
            (files, lambda told: told[FILES].split("; ") if FILES in told else []),
            (scale, SCALE),
        ]
        self.paste_field_names = [FILES, SCALE]
        return [enabled, files, scale, other]

    def process(self, p: Any, enabled: bool, files: Any, scale: float, other: bool) -> None:
        """Before a job: what it wants; what a job that failed has left is taken off."""
        ATTACHED.set(None)
        wanted = Wanted(tuple(files or ()), float(scale), bool(other)) if enabled else None
        setattr(p, WANTED, wanted)

    def postprocess(self, p: Any, processed: Any, *_: Any) -> None:
        """After a job: the network is as it was."""
        ATTACHED.set(None)
