"""emoji-clip: both towers, from nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from erase_sd.emoji.scenes import caption
from lab.train_emoji.networks import build_clip
from lab.train_emoji.plan import Plan
from lab.train_emoji.towers import TRAIN_TOKENS, save_clip
from lab.train_emoji.trainer import Trainer


def train(work: Trainer) -> None:
    """Contrastive training of both towers on renders and their captions, all nouns included."""
    images, scenes = work.images(), work.scenes()
    torch.manual_seed(work.seed)
    clip = build_clip(len(work.tokenizer)).to(work.device)
    plan: Plan = work.plan["clip"]

    def step_loss(step: int) -> dict[str, Tensor]:
        rng = work.rng(4, step)
        index = rng.choice(len(images), plan.batch, replace=len(images) < plan.batch)
        texts = [caption(scenes[i], rng, held_out=True, attributes=0.75) for i in index]
        with work.autocast():
            out = clip(
                input_ids=work.tokenize(texts, TRAIN_TOKENS),
                pixel_values=work.to_device(images[index]),
            )
        logits = out.logits_per_image.float()
        loss = work.contrast(logits, texts)
        hit = (logits.argmax(1) == torch.arange(len(index), device=work.device)).float().mean()
        return {"loss": loss, "hit": hit}

    work.loop("clip", clip, step_loss)
    save_clip(clip, work.out / "clip")
