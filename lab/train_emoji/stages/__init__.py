"""The stages of the training, one a file: each a function of the `Trainer`, by name."""

from __future__ import annotations

# In the order of a training.
RUN: dict[str, str] = {
    "scenes": "lab.train_emoji.stages.scenes:train",
    "vae": "lab.train_emoji.stages.vae:train",
    "clip": "lab.train_emoji.stages.clip:train",
    "judge": "lab.train_emoji.stages.judge:train",
    "latents": "lab.train_emoji.stages.latents:train",
    "unet": "lab.train_emoji.stages.unet:train",
    "vision": "lab.train_emoji.stages.vision:train",
    "export": "lab.train_emoji.export:export",
    "judge2": "lab.train_emoji.stages.judge2:train",
}
