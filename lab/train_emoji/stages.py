"""Train emoji-sd from nothing: `python -m erase_sd.emoji.train`.

Stages: scenes, vae, clip, judge, latents, unet, vision, export. Each keeps its state in the work folder, so
an interrupted run goes on where it stopped, and every batch is a function of (seed, stage, step),
so a resumed run sees the batches an uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from erase_sd.emoji import models
from erase_sd.emoji.export import export, save_clip
from erase_sd.emoji.render import render
from erase_sd.emoji.trainer import PLANS, STAGES, Plan, Trainer
from erase_sd.emoji.world import SIZE, caption, with_article

LATENT_NOISE = 0.05
TRAIN_TOKENS = 24  # captions are shorter; the causal tower's EOS output does not see the padding


class Training(Trainer):
    """One method for each stage."""

    def unpack(self, weights: Path) -> None:
        """Put shipped weights where the stages before the generator's would have left theirs."""
        from safetensors.torch import load_file

        sd = weights / "emoji-sd"
        for source, name in ((sd / "vae", "vae"), (sd / "tokenizer", "tokenizer")):
            if not (self.out / name).exists():
                shutil.copytree(source, self.out / name)
        if not (self.out / "clip").exists():
            save_clip(models.load_clip(weights)[0], self.out / "clip")
        if not (self.out / "judge.pt").exists():
            torch.save(load_file(weights / "judge.safetensors"), self.out / "judge.pt")

    def stage_scenes(self) -> None:
        """Render every training scene once."""
        target = self.out / "scenes.npy"
        if target.exists():
            return
        scenes = self.scenes()
        images = np.lib.format.open_memmap(
            target.with_suffix(".tmp"), "w+", np.uint8, (len(scenes), SIZE, SIZE, 3)
        )
        for i, scene in enumerate(tqdm(scenes, desc="scenes", mininterval=5)):
            images[i] = render(scene)
        images.flush()
        os.replace(target.with_suffix(".tmp"), target)

    def stage_vae(self) -> None:
        """L1 and L2 on pixels, L1 on their gradients, latents of unit scale with a fixed small noise."""
        images = self.images()
        torch.manual_seed(self.seed)
        vae = models.build_vae().to(self.device)
        plan: Plan = self.plan["vae"]

        def step_loss(step: int) -> dict[str, Tensor]:
            index = self.rng(2, step).choice(len(images), plan.batch)
            x = self.to_device(images[index])
            with self.autocast():
                posterior = vae.encode(x).latent_dist
                # A learnt variance starts at 1 and drowns the latent for the first thousand steps;
                # a fixed one teaches the decoder to forgive what the U-Net gets slightly wrong.
                z = posterior.mean + LATENT_NOISE * torch.randn_like(posterior.mean)
                y = vae.decode(z).sample
            y = y.float()
            error = y - x
            pixel = error.abs().mean()
            edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            target = 2 * math.log(
                LATENT_NOISE
            )  # so that `latent_dist.sample()` adds the same noise
            prior = (
                1e-4 * posterior.mean.square().mean()
                + 1e-2 * (posterior.logvar - target).square().mean()
            )
            loss = pixel + error.square().mean() + 0.5 * edges + prior.float()
            return {"loss": loss, "pixel": pixel}

        self.loop("vae", vae, step_loss)
        vae.save_pretrained(self.out / "vae")

    def stage_clip(self) -> None:
        """Contrastive training of both towers on renders and their captions, all nouns included."""
        images, scenes = self.images(), self.scenes()
        torch.manual_seed(self.seed)
        clip = models.build_clip(len(self.tokenizer)).to(self.device)
        plan: Plan = self.plan["clip"]

        def step_loss(step: int) -> dict[str, Tensor]:
            rng = self.rng(4, step)
            index = rng.choice(len(images), plan.batch, replace=len(images) < plan.batch)
            texts = [caption(scenes[i], rng, held_out=True, attributes=0.75) for i in index]
            with self.autocast():
                out = clip(
                    input_ids=self.tokenize(texts, TRAIN_TOKENS),
                    pixel_values=self.to_device(images[index]),
                )
            logits = out.logits_per_image.float()
            loss = self.contrast(logits, texts)
            hit = (logits.argmax(1) == torch.arange(len(index), device=self.device)).float().mean()
            return {"loss": loss, "hit": hit}

        self.loop("clip", clip, step_loss)
        save_clip(clip, self.out / "clip")

    def stage_vision(self) -> None:
        """Train the image tower and both projections on, against the text tower, which stays as it is.

        The generator was trained on that text tower. Whole captions teach everything at once; naming the
        object alone, among all objects, teaches what zero-shot classification needs.
        """
        from transformers import CLIPModel

        images, scenes = self.images(), self.scenes()
        single = np.array([len(s.objects) == 1 for s in scenes])
        clip = (
            CLIPModel.from_pretrained(self.out / "clip", dtype=torch.float32)
            .to(self.device)
            .train()
        )
        clip.text_model.requires_grad_(False).eval()
        with torch.no_grad():
            names = [
                clip.text_model(
                    self.tokenize([t.format(with_article(n)) for n in self.world.names])
                ).pooler_output
                for t in (
                    "a photo of {}",
                    "a picture of {}",
                    "an emoji of {}",
                    "a drawing of {}",
                    "{}",
                )
            ]
        plan: Plan = self.plan["vision"]

        def step_loss(step: int) -> dict[str, Tensor]:
            rng = self.rng(8, step)
            index = rng.choice(len(images), plan.batch, replace=len(images) < plan.batch)
            texts = [caption(scenes[i], rng, held_out=True, attributes=0.5) for i in index]
            with self.autocast():
                with torch.no_grad():
                    pooled = clip.text_model(self.tokenize(texts, TRAIN_TOKENS)).pooler_output
                seen = F.normalize(clip.visual_projection(
                    clip.vision_model(self.to_device(images[index])).pooler_output).float(), dim=1)  # fmt: skip
                told = F.normalize(clip.text_projection(pooled).float(), dim=1)
                named = F.normalize(clip.text_projection(names[step % len(names)]).float(), dim=1)
            scale = clip.logit_scale.exp().clamp(max=100)
            logits = scale * seen @ told.T
            contrast = self.contrast(logits, texts)
            one = torch.from_numpy(single[index]).to(self.device)
            truth = torch.tensor([scenes[i].objects[0] for i in index], device=self.device)
            classes = scale * seen @ named.T
            object_loss = F.cross_entropy(classes[one], truth[one])
            hit = (classes[one].argmax(1) == truth[one]).float().mean()
            return {"loss": contrast + object_loss, "hit": hit}

        self.loop("vision", clip, step_loss)
        save_clip(clip, self.out / "vision")

    def stage_judge(self) -> None:
        """Classifier on its own scenes, a third of them seen through the VAE."""
        scenes = self.scenes(offset=1)
        pictures = np.stack([render(s) for s in tqdm(scenes, desc="judge's scenes", mininterval=5)])
        vae = self.load_vae()
        torch.manual_seed(self.seed)
        judge = models.Judge().to(self.device)
        plan: Plan = self.plan["judge"]
        grounds = list(self.world.backgrounds)

        def step_loss(step: int) -> dict[str, Tensor]:
            rng = self.rng(5, step)
            index = rng.choice(len(scenes), plan.batch)
            batch = [scenes[i] for i in index]
            x = self.to_device(pictures[index])
            third = plan.batch // 3
            with torch.no_grad(), self.autocast():
                z = vae.encode(x[:third]).latent_dist.mean
                z = z + 0.2 * z.float().std() * torch.rand(
                    third, 1, 1, 1, device=z.device
                ) * torch.randn_like(z)
                x[:third] = vae.decode(z).sample.float()
            x = x + 0.06 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)
            objects = torch.zeros(len(batch), len(self.world.concepts), device=self.device)
            for row, scene in enumerate(batch):
                objects[row, list(scene.objects)] = 1
            artist = torch.tensor([s.artist for s in batch], device=self.device)
            ground = torch.tensor([grounds.index(s.background) for s in batch], device=self.device)
            with self.autocast():
                o, a, b = judge(x)
            found = F.binary_cross_entropy_with_logits(o.float(), objects) * 20
            style = F.cross_entropy(a.float(), artist)
            colour = F.cross_entropy(b.float(), ground)
            return {"loss": found + style + colour, "objects": found, "artist": style}

        self.loop("judge", judge, step_loss)
        torch.save(judge.state_dict(), self.out / "judge.pt")

    @torch.no_grad()
    def stage_latents(self) -> None:
        """Encode every training scene once; record the scale that makes latents unit-variance."""
        target = self.out / "latents.pt"
        if target.exists():
            return
        images, vae = self.images(), self.load_vae()
        chunks = []
        for start in tqdm(range(0, len(images), 128), desc="latents", mininterval=5):
            with self.autocast():
                chunks.append(
                    vae.encode(self.to_device(images[start : start + 128]))
                    .latent_dist.mean.cpu()
                    .half()
                )
        latents = torch.cat(chunks)
        # A generator that goes on must go on in the units it was trained in.
        scale = vae.config.scaling_factor if self.init else 1 / float(latents.float().std())
        torch.save({"latents": latents, "scale": scale}, target.with_suffix(".tmp"))
        os.replace(target.with_suffix(".tmp"), target)

    def stage_unet(self) -> None:
        """v-prediction with min-SNR weights, an averaged copy, and 10 % empty captions."""
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextModel

        data = torch.load(self.out / "latents.pt", weights_only=True)
        latents = (data["latents"].float() * data["scale"]).to(self.device)
        text = CLIPTextModel.from_pretrained(self.out / "clip" / "text").to(self.device).eval()
        bank = self._caption_bank(text)
        torch.manual_seed(self.seed)
        unet = models.build_unet().to(self.device)
        if self.device.type == "cpu":
            # Maps of 8x8 and 4x4: plain matrix products are 1.4 times as fast a step as the fused kernel's backward,
            # and oneDNN's convolutions want channels last.
            unet.set_attn_processor(AttnProcessor())
            unet.to(memory_format=torch.channels_last)
        ema = models.build_unet().to(self.device).requires_grad_(False)
        if self.init:
            from safetensors.torch import load_file

            start = load_file(
                self.init / "emoji-sd" / "unet" / "diffusion_pytorch_model.safetensors"
            )
            unet.load_state_dict({k: v.float() for k, v in start.items()})
        ema.load_state_dict(unet.state_dict())
        plan: Plan = self.plan["unet"]
        alphas = models.build_scheduler().alphas_cumprod.to(self.device)

        def step_loss(step: int) -> dict[str, Tensor]:
            rng = self.rng(6, step)
            index = torch.from_numpy(rng.choice(len(latents), plan.batch)).to(self.device)
            which = torch.from_numpy(rng.integers(0, bank.shape[0] - 1, plan.batch)).to(self.device)
            states = bank[which, index].float()
            states[torch.from_numpy(rng.random(plan.batch) < 0.1).to(self.device)] = bank[
                -1, 0
            ].float()
            x = latents[index].to(memory_format=torch.channels_last)
            noise = torch.randn_like(x)
            # Stratified time steps: the same expectation, less variance.
            t = (
                torch.arange(plan.batch, device=self.device)
                + torch.rand(plan.batch, device=self.device)
            ) / plan.batch
            t = (t * len(alphas)).long().clamp(max=len(alphas) - 1)
            a = alphas[t].view(-1, 1, 1, 1)
            noisy = a.sqrt() * x + (1 - a).sqrt() * noise
            v = a.sqrt() * noise - (1 - a).sqrt() * x
            with self.autocast():
                out = unet(noisy, t, states).sample
            error = (out.float() - v).square().mean((1, 2, 3))
            # min(SNR, 5) / (SNR + 1) on v (Hang et al., arXiv 2303.09556), written without SNR = a/(1-a).
            a = a.flatten()
            weight = torch.minimum(a, 5 * (1 - a)) + self.plan["floor"]
            return {"loss": (weight * error).mean() * 2, "v": error.mean()}

        self.loop("unet", unet, step_loss, ema=ema)
        ema.save_pretrained(self.out / "unet")

    @torch.no_grad()
    def _caption_bank(self, text: Any, variants: int = 2) -> Tensor:
        """`(variants + 1, scenes, 77, width)` half; the last holds the empty caption at [-1, 0]."""
        scenes = self.scenes()
        where = self.device if self.device.type == "cuda" else "cpu"
        bank = torch.zeros(
            variants + 1,
            len(scenes),
            models.TOKENS,
            models.TEXT_WIDTH,
            dtype=torch.half,
            device=where,
        )
        for v in range(variants):
            for start in tqdm(
                range(0, len(scenes), 256), desc=f"captions {v + 1}/{variants}", mininterval=5
            ):
                rng = self.rng(7, v, start)
                texts = [
                    caption(s, rng, attributes=self.plan["attributes"])
                    for s in scenes[start : start + 256]
                ]
                with self.autocast():
                    bank[v, start : start + 256] = text(
                        self.tokenize(texts)
                    ).last_hidden_state.half()
        bank[-1, 0] = text(self.tokenize([""])).last_hidden_state[0].half()
        return bank

    def stage_export(self) -> None:
        """Write the shipped folders."""
        export(self)

    def run(self, stages: Iterable[str]) -> None:
        """Run stages in order; add each one's seconds to `seconds.json`."""
        clock = self.out / "seconds.json"
        for stage in stages:
            seconds = json.loads(clock.read_text()) if clock.exists() else {}
            clock.write_text(json.dumps(seconds))
            start = time.monotonic()
            getattr(self, f"stage_{stage}")()
            seconds[stage] = round(seconds.get(stage, 0) + time.monotonic() - start)
            clock.write_text(json.dumps(seconds))


def main(argv: list[str] | None = None) -> int:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.emoji.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("build/emoji"), help="work folder (resumed if it exists)"
    )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plan", choices=PLANS, help="default: the plan for the device")
    parser.add_argument(
        "--seed", type=int, help="default: 0; with --init, one more than those weights' last seed"
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="WEIGHTS",
        help="train the generator and the image tower of these weights on (plan cpu- or cuda-continue)",
    )
    parser.add_argument("--steps", type=int, help="steps of the generator, instead of the plan's")
    args = parser.parse_args(argv)
    plan = args.plan or ("cuda" if args.device.startswith("cuda") else "cpu") + (
        "-continue" if args.init else ""
    )
    stages = [
        s
        for s in args.stages
        if not args.init or s in ("scenes", "latents", "unet", "vision", "export")
    ]
    seed = args.seed
    if seed is None:  # a continuation sees other scenes and other noise
        seed = json.loads((args.init / "training.json").read_text())["seed"] + 1 if args.init else 0
    training = Training(
        args.out, plan=plan, device=args.device, seed=seed, init=args.init, steps=args.steps
    )
    if args.init:
        training.unpack(args.init)
    training.run(stages)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
