"""The laboratory's second judge: `python -m lab.train_emoji --stages judge2`; renders alone."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from erase_sd.emoji.render import render
from lab.second_judge import SecondJudge
from lab.train_emoji.export import half
from lab.train_emoji.plan import Plan
from lab.train_emoji.trainer import Trainer

OFFSET = 2  # scenes that neither the generator nor the shipped judge was trained on
_SEED = 4_711  # added to the run's: another start than the shipped judge's


def train(work: Trainer) -> None:
    """Train it on scenes of its own, blurred, noisy and shifted in colour as drawings are."""
    scenes = work.scenes(offset=OFFSET)
    pictures = np.stack([render(s) for s in tqdm(scenes, desc="judge2's scenes", mininterval=5)])
    torch.manual_seed(work.seed + _SEED)
    judge = SecondJudge().to(work.device)
    plan: Plan = work.plan["judge2"]

    def step_loss(step: int) -> dict[str, Tensor]:
        index = work.rng(9, step).choice(len(scenes), plan.batch)
        x = disturbed(work.to_device(pictures[index]))
        with work.autocast():
            out = judge(x)
        o, a, b = (t.float() for t in out)
        objects, artist, ground = work.answers([scenes[i] for i in index])
        found = F.binary_cross_entropy_with_logits(o, objects) * 20
        style, colour = F.cross_entropy(a, artist), F.cross_entropy(b, ground)
        return {"loss": found + style + colour, "objects": found, "artist": style}

    work.loop("judge2", judge, step_loss)
    target = work.out / "judge2.safetensors"
    save_file(half({k: v.cpu() for k, v in judge.state_dict().items()}), target)
    print(f"wrote {target}: copy it to lab/weights/ to use it")


def disturbed(x: Tensor) -> Tensor:
    """Pictures as a generator might draw them: soft, noisy, a little off in brightness.

    Args:
        x: `(n, 3, h, w)` in [-1, 1].
    """
    n = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(n, 1, 1, 1, device=x.device)
    x = torch.lerp(x, soft, share * (torch.rand(n, 1, 1, 1, device=x.device) < 0.5))
    x = x + 0.08 * torch.rand(n, 1, 1, 1, device=x.device) * torch.randn_like(x)
    return x + 0.05 * torch.randn(n, 3, 1, 1, device=x.device)
