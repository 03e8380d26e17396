"""What every training stage shares: the work folder, the data, the resumable loop."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from erase_sd.emoji.clip import TOKENS
from erase_sd.emoji.scenes import Scene, caption, sample_scene
from erase_sd.emoji.world import load_world
from erase_sd.pixels import to_unit
from lab.train_emoji.plan import PLANS, Plan, stage_id
from lab.train_emoji.tokenizer import WORDS, build_tokenizer


class Clock:
    """Seconds that each stage took, over all interruptions, in a JSON file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stage, self._since = "", 0.0

    def start(self, stage: str) -> None:
        """From now on time counts for this stage."""
        self._stage, self._since = stage, time.monotonic()
        self._add(0.0)

    def tick(self) -> None:
        """Note what has passed since the last time; without a stage there is nothing to note."""
        if self._stage:
            now = time.monotonic()
            self._add(now - self._since)
            self._since = now

    def _add(self, seconds: float) -> None:
        told = json.loads(self.path.read_text()) if self.path.exists() else {}
        told[self._stage] = round(told.get(self._stage, 0) + seconds, 1)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(told))
        os.replace(draft, self.path)


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
        self.clock = Clock(out / "seconds.json")
        out.mkdir(parents=True, exist_ok=True)
        # A trapezoid may be lengthened or cut short while it is level: its length is no part of
        # what the run is.
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
        """Minimise `step_loss(step)["loss"]` by AdamW with warm-up and a falling rate; resumable.

        Args:
            stage: Names the plan and the state's file.
            net: What is trained.
            step_loss: Losses of a step's batch, a function of the step alone.
            ema: An averaged copy to keep.
            decay: Of the average.
            save_every: Seconds between two states.

        Raises:
            RuntimeError: If the loss is no longer a number.
        """
        plan: Plan = self.plan[stage]
        state = _State(self.out / f"{stage}.state.pt", net, plan, ema)
        start = state.resume(self.device)
        warmup = min(200, plan.steps // 10 + 1)
        saved = time.monotonic()
        bar = tqdm(
            range(start, plan.steps), initial=start, total=plan.steps, desc=stage, mininterval=5
        )
        mean: dict[str, float] = {}
        for step in bar:
            scale = min(1.0, (step + 1) / warmup) * self.schedule(step / plan.steps)
            torch.manual_seed(hash((self.seed, stage_id(stage), step)) % 2**31)
            losses = state.step(step_loss, step, lr=plan.lr * scale)
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
                state.save(step + 1)
                self.clock.tick()
                saved = time.monotonic()
        state.save(plan.steps)

    def schedule(self, done: float) -> float:
        """Share of the peak learning rate after a share `done` of the steps."""
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
        return np.asarray(np.load(self.out / "scenes.npy"))

    def to_device(self, images: np.ndarray) -> Tensor:
        """`(n, 64, 64, 3)` uint8 to `(n, 3, 64, 64)` float in [-1, 1], where the networks are."""
        return to_unit(images).to(self.device)

    def answers(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """What a judge should say: objects `(n, concepts)`, artists and backgrounds `(n,)`."""
        grounds = list(self.world.backgrounds)
        objects = torch.zeros(len(scenes), len(self.world.concepts), device=self.device)
        for row, scene in enumerate(scenes):
            objects[row, list(scene.objects)] = 1
        artist = torch.tensor([s.artist for s in scenes], device=self.device)
        ground = torch.tensor([grounds.index(s.background) for s in scenes], device=self.device)
        return objects, artist, ground

    def contrast(self, logits: Tensor, texts: list[str]) -> Tensor:
        """Symmetric contrastive loss of `(n, n)` logits; equal captions are equally right."""
        numbers = {t: i for i, t in enumerate(dict.fromkeys(texts))}
        ids = torch.tensor([numbers[t] for t in texts], device=self.device)
        same = (ids[:, None] == ids[None]).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def load_vae(self) -> Any:
        """The trained autoencoder, frozen."""
        vae = AutoencoderKL.from_pretrained(self.out / "vae", trust_remote_code=False)
        return vae.to(self.device).eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Any:
        """CLIP's tokenizer, trained once on the world's captions and ordinary words."""
        folder = self.out / "tokenizer"
        if not (folder / "merges.txt").exists():
            rng = self.rng(3)
            captions = [caption(sample_scene(rng), rng, held_out=True) for _ in range(6000)]
            build_tokenizer(captions + WORDS.read_text().split() * 20, folder)
        return CLIPTokenizer.from_pretrained(folder, trust_remote_code=False)

    def tokenize(self, texts: list[str], length: int = TOKENS) -> Tensor:
        """`(n, length)` token ids, padded with EOS."""
        options: dict[str, Any] = {"padding": "max_length", "truncation": True}
        ids: Tensor = self.tokenizer(
            texts, max_length=length, return_tensors="pt", **options
        ).input_ids
        return ids.to(self.device)


class _State:
    """A network, its optimizer and how far they are; on disk as one file, written whole."""

    def __init__(self, path: Path, net: nn.Module, plan: Plan, ema: nn.Module | None) -> None:
        self.path, self.net, self.ema = path, net, ema
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=plan.lr, betas=(0.9, 0.99), weight_decay=0.01
        )

    def resume(self, device: torch.device) -> int:
        """Load what is there; returns the next step."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location=device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write everything; a kill in between leaves the last state."""
        state = {
            "step": step,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        draft = self.path.with_suffix(".tmp")
        torch.save(state, draft)
        os.replace(draft, self.path)

    def step(
        self, step_loss: Callable[[int], dict[str, Tensor]], step: int, *, lr: float
    ) -> dict[str, Tensor]:
        """One step down the gradient of `loss`, clipped to norm 1."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = step_loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return losses
