"""emoji-clip's image tower, trained on."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from erase_sd.emoji.scenes import caption
from erase_sd.emoji.world import with_article
from lab.train_emoji.plan import Plan
from lab.train_emoji.towers import TRAIN_TOKENS, save_clip
from lab.train_emoji.trainer import Trainer

_SENTENCES = ("a photo of {}", "a picture of {}", "an emoji of {}", "a drawing of {}", "{}")


def train(work: Trainer) -> None:
    """Train the image tower and both projections on, against the text tower, which stays as it is.

    The generator was trained on that text tower. Whole captions teach everything at once; naming
    the object alone, among all objects, teaches what zero-shot classification needs.
    """
    images, scenes = work.images(), work.scenes()
    single = np.array([len(s.objects) == 1 for s in scenes])
    clip = CLIPModel.from_pretrained(
        work.out / "clip", dtype=torch.float32, trust_remote_code=False
    )
    clip = clip.to(work.device).train()
    clip.text_model.requires_grad_(False).eval()
    with torch.no_grad():
        names = [
            clip.text_model(
                work.tokenize([t.format(with_article(n)) for n in work.world.names])
            ).pooler_output
            for t in _SENTENCES
        ]
    plan: Plan = work.plan["vision"]

    def step_loss(step: int) -> dict[str, Tensor]:
        rng = work.rng(8, step)
        index = rng.choice(len(images), plan.batch, replace=len(images) < plan.batch)
        texts = [caption(scenes[i], rng, held_out=True, attributes=0.5) for i in index]
        with work.autocast():
            with torch.no_grad():
                pooled = clip.text_model(work.tokenize(texts, TRAIN_TOKENS)).pooler_output
            pixels = clip.vision_model(work.to_device(images[index])).pooler_output
            seen = F.normalize(clip.visual_projection(pixels).float(), dim=1)
            told = F.normalize(clip.text_projection(pooled).float(), dim=1)
            named = F.normalize(clip.text_projection(names[step % len(names)]).float(), dim=1)
        scale = clip.logit_scale.exp().clamp(max=100)
        logits = scale * seen @ told.T
        contrast = work.contrast(logits, texts)
        one = torch.from_numpy(single[index]).to(work.device)
        truth = torch.tensor([scenes[i].objects[0] for i in index], device=work.device)
        classes = scale * seen @ named.T
        object_loss = F.cross_entropy(classes[one], truth[one])
        hit = (classes[one].argmax(1) == truth[one]).float().mean()
        return {"loss": contrast + object_loss, "hit": hit}

    work.loop("vision", clip, step_loss)
    save_clip(clip, work.out / "vision")
