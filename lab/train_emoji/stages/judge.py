"""The shipped judge."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from erase_sd.emoji.judge import Judge
from erase_sd.emoji.render import render
from lab.train_emoji.plan import Plan
from lab.train_emoji.trainer import Trainer


def train(work: Trainer) -> None:
    """Classifier on its own scenes, a third of them seen through the VAE."""
    scenes = work.scenes(offset=1)
    pictures = np.stack([render(s) for s in tqdm(scenes, desc="judge's scenes", mininterval=5)])
    vae = work.load_vae()
    torch.manual_seed(work.seed)
    judge = Judge().to(work.device)
    plan: Plan = work.plan["judge"]

    def step_loss(step: int) -> dict[str, Tensor]:
        rng = work.rng(5, step)
        index = rng.choice(len(scenes), plan.batch)
        batch = [scenes[i] for i in index]
        x = work.to_device(pictures[index])
        third = plan.batch // 3
        with torch.no_grad(), work.autocast():
            z = vae.encode(x[:third]).latent_dist.mean
            z = z + 0.2 * z.float().std() * torch.rand(
                third, 1, 1, 1, device=z.device
            ) * torch.randn_like(z)
            x[:third] = vae.decode(z).sample.float()
        x = x + 0.06 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)
        objects, artist, ground = work.answers(batch)
        with work.autocast():
            o, a, b = judge(x)
        found = F.binary_cross_entropy_with_logits(o.float(), objects) * 20
        style = F.cross_entropy(a.float(), artist)
        colour = F.cross_entropy(b.float(), ground)
        return {"loss": found + style + colour, "objects": found, "artist": style}

    work.loop("judge", judge, step_loss)
    torch.save(judge.state_dict(), work.out / "judge.pt")
