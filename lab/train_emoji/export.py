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
from safetensors.torch import load_file, save_file
from torch import Tensor

from erase_sd.emoji.models import IMAGE_TOWER, WEIGHTS
from lab.train_emoji.networks import build_scheduler
from lab.train_emoji.plan import Plan
from lab.train_emoji.trainer import Trainer

_INDEX = {
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


def export(work: Trainer) -> None:
    """Write the shipped folders in float16, with text-encoder keys that every version loads."""
    target = work.out / "weights"
    shutil.rmtree(target, ignore_errors=True)
    _generator(work, target / "emoji-sd")
    # The text tower is emoji-sd's text encoder; it is shipped once.
    made = work.out / ("vision" if (work.out / "vision").exists() else "clip")
    clip = load_file(made / "model.safetensors")
    tower = {k: v for k, v in clip.items() if "text_model." not in k}
    (target / "emoji-clip").mkdir()
    save_file(half(tower), target / "emoji-clip" / IMAGE_TOWER, metadata={"format": "pt"})
    shutil.copy(made / "config.json", target / "emoji-clip")
    shutil.copytree(work.out / "tokenizer", target / "emoji-clip", dirs_exist_ok=True)
    judge = torch.load(work.out / "judge.pt", map_location="cpu", weights_only=True)
    save_file(half(judge), target / "judge.safetensors")
    (target / "training.json").write_text(json.dumps(_provenance(work), indent=2))
    print(f"wrote {target}: copy it over {WEIGHTS} to ship it")


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float16, others as they are."""
    return {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}


def _generator(work: Trainer, sd: Path) -> None:
    """The diffusers folder."""
    scale = torch.load(work.out / "latents.pt", weights_only=True)["scale"]
    sources = {"vae": "vae", "unet": "unet", "text_encoder": "clip/text"}
    for name, source in sources.items():
        _half_folder(work.out / source, sd / name)
    _change_json(sd / "vae" / "config.json", scaling_factor=round(scale, 6))
    # transformers loads the dtype named here; diffusers loads the rest in float32. They must agree.
    _change_json(sd / "text_encoder" / "config.json", dtype="float32", torch_dtype="float32")
    shutil.copytree(work.out / "tokenizer", sd / "tokenizer", dirs_exist_ok=True)
    build_scheduler().save_pretrained(sd / "scheduler")
    (sd / "model_index.json").write_text(json.dumps(_INDEX, indent=2))


def _half_folder(source: Path, to: Path) -> None:
    to.mkdir(parents=True)
    shutil.copy(source / "config.json", to)
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        if (source / name).exists():
            save_file(half(load_file(source / name)), to / name, metadata={"format": "pt"})


def _change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def _provenance(work: Trainer) -> dict[str, Any]:
    """What these weights are made by."""
    on = f"CPU, {os.cpu_count()} cores"
    command = f"python -m lab.train_emoji --plan {work.plan_name} --seed {work.seed}"
    if work.init:
        command += f" --init WEIGHTS --steps {work.plan['unet'].steps}"
    about = {
        "command": command,
        "plan": {k: asdict(v) if isinstance(v, Plan) else v for k, v in work.plan.items()},
        "seed": work.seed,
        "hardware": torch.cuda.get_device_name() if work.device.type == "cuda" else on,
        "seconds": json.loads((work.out / "seconds.json").read_text()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if work.init:
        about["continues"] = json.loads((work.init / "training.json").read_text())
    return about
