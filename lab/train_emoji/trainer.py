"""What every training stage shares: the plan, the data, the resumable loop."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from erase_sd.emoji import models
from erase_sd.emoji.world import Scene, caption, load_world, sample_scene

STAGES = ("scenes", "vae", "clip", "judge", "latents", "unet", "vision", "export")


@dataclass(frozen=True)
class Plan:
    """How long and how hard one network is trained."""

    steps: int
    batch: int
    lr: float


# pairs: share of two-object scenes; attributes: how often the generator's captions name the artist, and
# likewise the background; floor: added to the generator's loss weights, the more for pure noise to count.
PLANS: dict[str, dict[str, Any]] = {
    "cpu": {
        "scenes": 40_000,
        "pairs": 0.3,
        "attributes": 0.6,
        "floor": 0.1,
        "vae": Plan(1_900, 32, 8e-4),
        "clip": Plan(1_300, 128, 1e-3),
        "vision": Plan(800, 128, 1e-3),
        "judge": Plan(3_000, 64, 2e-3),
        "unet": Plan(5_000, 64, 6e-4),
    },
    # More of the generator and of the image tower: `--init` with weights that exist, the rest of them kept.
    "cpu-continue": {
        "scenes": 60_000,
        "pairs": 0.45,
        "attributes": 0.8,
        "floor": 0.3,
        "unet": Plan(15_000, 64, 5e-4),
        "vision": Plan(1_200, 128, 5e-4),
    },
    # The second generation: more of what the first one drew worst, by its judge and by eye.
    "cpu-second": {
        "scenes": 80_000,
        "pairs": 0.45,
        "attributes": 0.85,
        "floor": 0.3,
        "emphasis": 1.0,
        "schedule": "trapezoid",
        "unet": Plan(9_000, 64, 4e-4),
        "vision": Plan(1_200, 128, 5e-4),
    },
    "cuda-continue": {
        "scenes": 100_000,
        "pairs": 0.45,
        "attributes": 0.8,
        "floor": 0.3,
        "unet": Plan(15_000, 256, 5e-4),
        "vision": Plan(2_000, 512, 5e-4),
    },
    "cuda": {
        "scenes": 100_000,
        "pairs": 0.45,
        "attributes": 0.8,
        "floor": 0.3,
        "vae": Plan(8_000, 128, 8e-4),
        "clip": Plan(4_000, 512, 1e-3),
        "vision": Plan(2_000, 512, 5e-4),
        "judge": Plan(4_000, 256, 2e-3),
        "unet": Plan(20_000, 256, 6e-4),
    },
    "smoke": {
        "scenes": 64,
        "pairs": 0.3,
        "attributes": 0.6,
        "floor": 0.3,
        "vae": Plan(2, 4, 1e-3),
        "clip": Plan(2, 4, 1e-3),
        "vision": Plan(2, 4, 1e-3),
        "judge": Plan(2, 4, 1e-3),
        "unet": Plan(2, 4, 1e-3),
    },
}  # fmt: skip


class Trainer:
    """Work folder, device, seed and plan."""

    def __init__(
        self,
        out: Path,
        *,
        plan: str,
        device: str,
        seed: int,
        init: Path | None = None,
        steps: int | None = None,
    ) -> None:
        self.out = out
        self.device = torch.device(device)
        self.seed = seed
        self.init = init
        self.plan_name = plan
        self.plan = dict(PLANS[plan])
        if steps:
            self.plan["unet"] = replace(self.plan["unet"], steps=steps)
        self.world = load_world()
        out.mkdir(parents=True, exist_ok=True)
        # A trapezoid may be lengthened or cut short while it is level: its length is no part of what the run is.
        level = self.plan.get("schedule") == "trapezoid"
        mine = json.dumps(
            {"plan": plan, "seed": seed, "unet": None if level else self.plan["unet"].steps}
        )
        stamp = out / "run.json"
        if stamp.exists() and stamp.read_text() != mine:
            raise ValueError(
                f"{out} holds a run of {stamp.read_text()}, not {mine}; choose another --out"
            )
        stamp.write_text(mine)

    def rng(self, *key: int) -> np.random.Generator:
        """Randomness that depends on the seed and the key only."""
        return np.random.default_rng((self.seed, *key))

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 where it pays; the master weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def loop(
        self,
        stage: str,
        net: nn.Module,
        step_loss: Callable[[int], dict[str, Tensor]],
        *,
        ema: nn.Module | None = None,
        decay: float = 0.999,
        save_every: float = 120.0,
    ) -> None:
        """Minimise `step_loss(step)["loss"]` by AdamW with warm-up and cosine decay; resumable."""
        plan: Plan = self.plan[stage]
        state_file = self.out / f"{stage}.state.pt"
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=plan.lr, betas=(0.9, 0.99), weight_decay=0.01
        )
        start = 0
        if state_file.exists():
            state = torch.load(state_file, map_location=self.device, weights_only=True)
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            if ema is not None:
                ema.load_state_dict(state["ema"])
            start = state["step"]

        def save(step: int) -> None:
            state = {"step": step, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
            if ema is not None:
                state["ema"] = ema.state_dict()
            torch.save(state, state_file.with_suffix(".tmp"))
            os.replace(state_file.with_suffix(".tmp"), state_file)

        warmup = min(200, plan.steps // 10 + 1)
        saved = time.monotonic()
        bar = tqdm(
            range(start, plan.steps), initial=start, total=plan.steps, desc=stage, mininterval=5
        )
        mean: dict[str, float] = {}
        for step in bar:
            scale = min(1.0, (step + 1) / warmup) * self.schedule(step / plan.steps)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * scale
            torch.manual_seed(hash((self.seed, stage_id(stage), step)) % 2**31)
            losses = step_loss(step)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            if ema is not None:
                now = min(decay, (step + 1) / (step + 10))
                with torch.no_grad():
                    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - now)
            if step % 25 == 0:
                for key, value in losses.items():
                    mean[key] = 0.7 * mean.get(key, value.item()) + 0.3 * value.item()
                bar.set_postfix({k: f"{v:.4f}" for k, v in mean.items()}, refresh=False)
                if not math.isfinite(mean["loss"]):
                    raise RuntimeError(f"{stage}: the loss became {mean['loss']} at step {step}")
            if time.monotonic() - saved > save_every:
                save(step + 1)
                saved = time.monotonic()
        save(plan.steps)

    def schedule(self, done: float) -> float:
        """Share of the peak learning rate when a share `done` of the steps is taken: a cosine or a trapezoid."""
        if self.plan.get("schedule") == "trapezoid":
            return min(1.0, 0.02 + (1 - done) / 0.3)
        return 0.02 + 0.49 * (1 + math.cos(math.pi * done))

    def scenes(self, offset: int = 0) -> list[Scene]:
        """The training scenes; another offset gives scenes nobody trained on."""
        rng = self.rng(1, offset)
        emphasis = self.plan.get("emphasis", 0.0)
        return [
            sample_scene(rng, pairs=self.plan["pairs"], emphasis=emphasis)
            for _ in range(self.plan["scenes"])
        ]

    def images(self) -> np.ndarray:
        """All rendered scenes, `(n, 64, 64, 3)` uint8, in memory."""
        return np.load(self.out / "scenes.npy")

    def to_device(self, images: np.ndarray) -> Tensor:
        """uint8 NHWC to float NCHW in [-1, 1]."""
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return x.permute(0, 3, 1, 2).float() / 127.5 - 1

    def contrast(self, logits: Tensor, texts: list[str]) -> Tensor:
        """Symmetric contrastive loss of `(n, n)` image-text logits; equal captions are equally right answers."""
        numbers = {t: i for i, t in enumerate(dict.fromkeys(texts))}
        ids = torch.tensor([numbers[t] for t in texts], device=self.device)
        same = (ids[:, None] == ids[None]).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def load_vae(self) -> Any:
        """The trained autoencoder, frozen."""
        from diffusers import AutoencoderKL

        return (
            AutoencoderKL.from_pretrained(self.out / "vae")
            .to(self.device)
            .eval()
            .requires_grad_(False)
        )

    @cached_property
    def tokenizer(self) -> Any:
        """CLIP's tokenizer, trained once on the world's captions and ordinary words."""
        from transformers import CLIPTokenizer

        folder = self.out / "tokenizer"
        if not (folder / "merges.txt").exists():
            rng = self.rng(3)
            captions = [caption(sample_scene(rng), rng, held_out=True) for _ in range(6000)]
            words = (models.HERE / "words.txt").read_text().split()
            models.build_tokenizer(captions + words * 20, folder)
        return CLIPTokenizer.from_pretrained(folder)

    def tokenize(self, texts: list[str], length: int = models.TOKENS) -> Tensor:
        """`(n, length)` token ids, padded with EOS."""
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return ids.to(self.device)


def stage_id(stage: str) -> int:
    """A number for a stage, stable between runs (Python's string hash is not)."""
    return STAGES.index(stage)
