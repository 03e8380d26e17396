"""The diffusers side: erase from a live pipeline, restore it, generate.

>>> from erase_sd.pipelines import LiveErasure, apply_to_pipeline, erase_from_pipeline
>>> from erase_sd.pipelines import EraseBlock, hook_erasure, restore_pipeline
>>> from erase_sd.pipelines.loading import load_pipeline, model_path
>>> pipe = load_pipeline(model_path("emoji-sd"))
>>> cat = erase_from_pipeline(pipe, ["cat", "kitten"])
>>> restore_pipeline(pipe)  # every bit is back
>>> live = apply_to_pipeline(pipe, cat)
>>> isinstance(live, LiveErasure), live.erasures == (cat,)
(True, True)
>>> live.set_scale(0.5)
>>> restore_pipeline(pipe)
>>> hook_erasure(pipe.unet, cat)  # as a hook of diffusers
>>> EraseBlock(cat).erasure.names  # as a block of its modular pipelines
('cat',)
"""

from __future__ import annotations

from erase_sd._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "EraseBlock": "erase_sd.pipelines.block",
        "EraseStableDiffusionPipeline": "erase_sd.pipelines.stable_diffusion",
        "ErasureHook": "erase_sd.pipelines.denoiser_hook",
        "LiveErasure": "erase_sd.pipelines.live",
        "apply_to_pipeline": "erase_sd.pipelines.live",
        "erase_from_pipeline": "erase_sd.pipelines.erasing",
        "generate": "erase_sd.pipelines.sampling",
        "hook_erasure": "erase_sd.pipelines.denoiser_hook",
        "restore_pipeline": "erase_sd.pipelines.live",
    },
)
