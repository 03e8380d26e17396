"""The nodes: load, solve, apply, combine and look at erasures."""

from __future__ import annotations

import os
from typing import Any

import comfy.lora
import folder_paths

from erase_sd.algebra.methods import DEFAULT, METHODS
from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.hosted import architecture_of, check_fits
from erase_sd.artifact.lora import lora_tensors
from erase_sd.artifact.report import concept_lines
from erase_sd.fit.preflight import Words
from erase_sd.fit.solve import Settings, fit

from .wired import base_weights, lines, text_encoder

FOLDER = "erasures"
folder_paths.folder_names_and_paths.setdefault(
    FOLDER, ([os.path.join(folder_paths.models_dir, FOLDER)], {".safetensors"})
)


class LoadErasure:
    """Read an erasure file from `models/erasures`."""

    CATEGORY, FUNCTION = "erase-sd", "load"
    RETURN_TYPES = ("ERASURE", "STRING")
    RETURN_NAMES = ("erasure", "report")
    DESCRIPTION = "An erasure file, as erase-concept makes it (models/erasures)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """The files that are there."""
        return {"required": {"file": (folder_paths.get_filename_list(FOLDER),)}}

    @classmethod
    def IS_CHANGED(cls, file: str) -> float:  # noqa: N802 - ComfyUI's name
        """When the file was written last: it is read again if it is another."""
        return os.path.getmtime(folder_paths.get_full_path_or_raise(FOLDER, file))

    def load(self, file: str) -> tuple[Erasure, str]:
        """The erasure and what it says about itself."""
        erasure = Erasure.load(folder_paths.get_full_path_or_raise(FOLDER, file))
        return erasure, _told(erasure)


class ErasePrompts:
    """Solve an erasure from the wired MODEL and CLIP."""

    CATEGORY, FUNCTION = "erase-sd", "solve"
    RETURN_TYPES = ("ERASURE", "STRING")
    RETURN_NAMES = ("erasure", "report")
    DESCRIPTION = "Solve in seconds what takes some prompts out of this model; nothing is trained."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """What to forget and to keep, and how."""
        box = {"multiline": True, "default": ""}
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "forget": ("STRING", box | {"tooltip": "One prompt a line, e.g. cat"}),
                "retain": ("STRING", box | {"tooltip": "Prompts to keep; may be empty"}),
                "method": (list(METHODS), {"default": DEFAULT}),
                "robust": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Also against hostile embeddings; costs others"},
                ),
            }
        }

    def solve(
        self, model: Any, clip: Any, forget: str, retain: str, method: str, robust: bool
    ) -> tuple[Erasure, str]:
        """The erasure, bound to this model, and its certificate."""
        weights = base_weights(model)
        encoder = text_encoder(clip, architecture_of(weights))
        settings = Settings(method, robust=robust)
        kept = list(lines(retain))
        erasure = fit(encoder, list(lines(forget)), retain=kept, weights=weights, settings=settings)
        return erasure, _told(erasure)


class ApplyErasure:
    """Patch a MODEL with an erasure."""

    CATEGORY, FUNCTION = "erase-sd", "apply"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = "The model without what the erasure takes; at scale 0 bit for bit the original."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """The model, the erasure and how much of it."""
        scale = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}
        other = {"default": False, "tooltip": "Apply it to a fine-tune of the model it is for"}
        return {
            "required": {
                "model": ("MODEL",),
                "erasure": ("ERASURE",),
                "scale": ("FLOAT", scale),
                "allow_other_base": ("BOOLEAN", other),
            }
        }

    def apply(
        self, model: Any, erasure: Erasure, scale: float, allow_other_base: bool
    ) -> tuple[Any]:
        """The patched model; the wired one stays as it is.

        Raises:
            ValueError: If the erasure is for another model.
        """
        weights = base_weights(model)
        check_fits(erasure, weights, allow_other_base=allow_other_base)
        named = comfy.lora.model_lora_keys_unet(model.model, {})
        factors = {k: v.cpu() for k, v in lora_tensors(erasure, weights, style="kohya").items()}
        loaded = comfy.lora.load_lora(factors, named)
        wanted = len(erasure.editable(weights))
        if len(loaded) != wanted:
            raise ValueError(f"expected {wanted} tensors to patch, found {len(loaded)} of them")
        patched = model.clone()
        patched.add_patches(loaded, scale)
        return (patched,)


class CombineErasures:
    """Two erasures as one."""

    CATEGORY, FUNCTION = "erase-sd", "combine"
    RETURN_TYPES = ("ERASURE",)
    DESCRIPTION = "Both erasures as one; order does not matter. Two Apply nodes are not the same."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Two erasures of one model."""
        return {"required": {"a": ("ERASURE",), "b": ("ERASURE",)}}

    def combine(self, a: Erasure, b: Erasure) -> tuple[Erasure]:
        """Their sum."""
        return (a + b,)


class PreflightErasure:
    """Which words an erasure would hit."""

    CATEGORY, FUNCTION = "erase-sd", "look"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_NODE = True
    DESCRIPTION = "The certificate, and the words of the vocabulary that the erasure moves most."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """An erasure and the CLIP it acts behind."""
        return {"required": {"erasure": ("ERASURE",), "clip": ("CLIP",)}}

    def look(self, erasure: Erasure, clip: Any) -> dict[str, Any]:
        """The report, also shown where a front end shows text outputs."""
        encoder = text_encoder(clip, erasure.model)
        erasure.check_text_encoder(encoder.fingerprint)
        forget = [p for concept in erasure.concepts for p in concept.forget]
        hit = Words.of(encoder).hit(erasure.edit, exclude=forget)
        words = ", ".join(f"{word} {change:.0%}" for word, change in hit[:12])
        report = f"{_told(erasure)}\nwords moved most: {words}"
        return {"ui": {"text": [report]}, "result": (report,)}


def _told(erasure: Erasure) -> str:
    return "\n".join(line for concept in erasure.concepts for line in concept_lines(concept))


NODE_CLASS_MAPPINGS = {
    "EraseSDLoad": LoadErasure,
    "EraseSDPrompts": ErasePrompts,
    "EraseSDApply": ApplyErasure,
    "EraseSDCombine": CombineErasures,
    "EraseSDPreflight": PreflightErasure,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "EraseSDLoad": "Load erasure",
    "EraseSDPrompts": "Erase prompts",
    "EraseSDApply": "Apply erasure",
    "EraseSDCombine": "Combine erasures",
    "EraseSDPreflight": "Pre-flight",
}
