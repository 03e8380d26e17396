"""From a work folder to the shipped weights."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from erase_sd.emoji import models
from erase_sd.emoji.trainer import Plan, Trainer


def export(trainer: Trainer) -> None:
    """Write the shipped folders in float16, with text-encoder keys that every version loads."""
    from safetensors.torch import load_file, save_file

    target = trainer.out / "weights"
    shutil.rmtree(target, ignore_errors=True)
    sd = target / "emoji-sd"
    scale = torch.load(trainer.out / "latents.pt", weights_only=True)["scale"]

    def half(source: Path, to: Path) -> None:
        to.mkdir(parents=True)
        for name in ("config.json", "diffusion_pytorch_model.safetensors", "model.safetensors"):
            if name.endswith(".json"):
                shutil.copy(source / name, to)
            elif (source / name).exists():
                tensors = {
                    k: v.half() if v.is_floating_point() else v
                    for k, v in load_file(source / name).items()
                }
                save_file(tensors, to / name, metadata={"format": "pt"})

    half(trainer.out / "vae", sd / "vae")
    config = json.loads((sd / "vae" / "config.json").read_text())
    config["scaling_factor"] = round(scale, 6)
    (sd / "vae" / "config.json").write_text(json.dumps(config, indent=2))
    half(trainer.out / "unet", sd / "unet")
    half(trainer.out / "clip" / "text", sd / "text_encoder")
    # transformers loads the dtype named here; diffusers loads the rest in float32. They must agree.
    text_config = json.loads((sd / "text_encoder" / "config.json").read_text())
    text_config["dtype"] = text_config["torch_dtype"] = "float32"
    (sd / "text_encoder" / "config.json").write_text(json.dumps(text_config, indent=2))
    # The text tower is emoji-sd's text encoder; it is shipped once.
    clip = load_file(trainer.out / "vision" / "model.safetensors")
    tower = {
        k: v.half() if v.is_floating_point() else v
        for k, v in clip.items()
        if "text_model." not in k
    }
    (target / "emoji-clip").mkdir()
    save_file(tower, target / "emoji-clip" / models.IMAGE_TOWER, metadata={"format": "pt"})
    shutil.copy(trainer.out / "vision" / "config.json", target / "emoji-clip")
    for folder in (sd / "tokenizer", target / "emoji-clip"):
        shutil.copytree(trainer.out / "tokenizer", folder, dirs_exist_ok=True)
    models.build_scheduler().save_pretrained(sd / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (sd / "model_index.json").write_text(json.dumps(index, indent=2))
    judge = torch.load(trainer.out / "judge.pt", map_location="cpu", weights_only=True)
    judge = {k: v.half() if v.is_floating_point() else v for k, v in judge.items()}
    save_file(judge, target / "judge.safetensors")
    plans = {k: asdict(v) if isinstance(v, Plan) else v for k, v in trainer.plan.items()}
    device = (
        torch.cuda.get_device_name()
        if trainer.device.type == "cuda"
        else f"CPU, {os.cpu_count()} cores"
    )
    provenance = {
        "command": f"python -m erase_sd.emoji.train --plan {trainer.plan_name} --seed {trainer.seed}"
        + (f" --init WEIGHTS --steps {trainer.plan['unet'].steps}" if trainer.init else ""),
        "plan": plans,
        "seed": trainer.seed,
        "hardware": device,
        "seconds": json.loads((trainer.out / "seconds.json").read_text()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if trainer.init:
        provenance["continues"] = json.loads((trainer.init / "training.json").read_text())
    (target / "training.json").write_text(json.dumps(provenance, indent=2))
    print(f"wrote {target}: copy it over {models.WEIGHTS} to ship it")


def save_clip(clip: Any, folder: Path) -> None:
    """Save both towers as `folder` and the text tower alone as `folder/text`.

    transformers 5.6 dropped the `text_model.` prefix from CLIPTextModel; older versions then load such
    a file as random weights, while newer ones read both. So the old names are written.
    """
    from safetensors.torch import save_file

    text = folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in clip.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = clip.config.to_dict()
    config["architectures"] = ["CLIPModel"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    tower = {k: v for k, v in state.items() if k.startswith("text_model.")}
    save_file(tower, text / "model.safetensors", metadata={"format": "pt"})
    text_config = clip.config.text_config.to_dict()
    text_config["architectures"] = ["CLIPTextModel"]
    (text / "config.json").write_text(json.dumps(text_config, indent=2, default=str))
