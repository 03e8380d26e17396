"""The generator."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel

from erase_sd.emoji.clip import TOKENS
from erase_sd.emoji.scenes import caption
from lab.train_emoji.networks import TEXT_WIDTH, build_scheduler, build_unet
from lab.train_emoji.plan import Plan
from lab.train_emoji.trainer import Trainer


def train(work: Trainer) -> None:
    """v-prediction with min-SNR weights, an averaged copy, and 10 % empty captions."""
    data = torch.load(work.out / "latents.pt", weights_only=True)
    latents = (data["latents"].float() * data["scale"]).to(work.device)
    source = work.out / "clip" / "text"
    text = CLIPTextModel.from_pretrained(source, trust_remote_code=False).to(work.device).eval()
    bank = caption_bank(work, text)
    torch.manual_seed(work.seed)
    unet = build_unet().to(work.device)
    if work.device.type == "cpu":
        # On maps of 8x8 and 4x4 the backward pass of plain matrix products is faster than the fused
        # kernel's. Channels last is oneDNN's own layout; no step was measured to be faster for it.
        unet.set_attn_processor(AttnProcessor())
        unet.to(memory_format=torch.channels_last)
    ema = build_unet().to(work.device).requires_grad_(False)
    if work.init:
        start = load_file(work.init / "emoji-sd" / "unet" / "diffusion_pytorch_model.safetensors")
        unet.load_state_dict({k: v.float() for k, v in start.items()})
    ema.load_state_dict(unet.state_dict())
    plan: Plan = work.plan["unet"]
    alphas = build_scheduler().alphas_cumprod.to(work.device)

    def step_loss(step: int) -> dict[str, Tensor]:
        rng = work.rng(6, step)
        index = torch.from_numpy(rng.choice(len(latents), plan.batch)).to(work.device)
        which = torch.from_numpy(rng.integers(0, bank.shape[0] - 1, plan.batch)).to(work.device)
        states = bank[which, index].float()
        states[torch.from_numpy(rng.random(plan.batch) < 0.1).to(work.device)] = bank[-1, 0].float()
        x = latents[index].to(memory_format=torch.channels_last)
        noise = torch.randn_like(x)
        # Stratified time steps: the same expectation, less variance.
        t = (
            torch.arange(plan.batch, device=work.device)
            + torch.rand(plan.batch, device=work.device)
        ) / plan.batch
        t = (t * len(alphas)).long().clamp(max=len(alphas) - 1)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * x
        with work.autocast():
            out = unet(noisy, t, states).sample
        error = (out.float() - v).square().mean((1, 2, 3))
        # min(SNR, 5) / (SNR + 1) on v (Hang et al., arXiv 2303.09556), written without SNR =
        # a/(1-a).
        a = a.flatten()
        weight = torch.minimum(a, 5 * (1 - a)) + work.plan["floor"]
        return {"loss": (weight * error).mean() * 2, "v": error.mean()}

    work.loop("unet", unet, step_loss, ema=ema)
    ema.save_pretrained(work.out / "unet")


@torch.no_grad()
def caption_bank(work: Trainer, text: Any, variants: int = 2) -> Tensor:
    """`(variants + 1, scenes, 77, width)` half; the last holds the empty caption at [-1, 0].

    Kept in the work folder: minutes of work, which a resumed run wants again.
    """
    where = work.device if work.device.type == "cuda" else "cpu"
    stored = work.out / "captions.pt"
    if stored.exists():
        kept: Tensor = torch.load(stored, weights_only=True, mmap=True)
        return kept.to(where)
    scenes = work.scenes()
    bank = torch.zeros(
        variants + 1,
        len(scenes),
        TOKENS,
        TEXT_WIDTH,
        dtype=torch.half,
        device=where,
    )
    for v in range(variants):
        for start in tqdm(
            range(0, len(scenes), 256), desc=f"captions {v + 1}/{variants}", mininterval=5
        ):
            rng = work.rng(7, v, start)
            texts = [
                caption(s, rng, attributes=work.plan["attributes"])
                for s in scenes[start : start + 256]
            ]
            with work.autocast():
                bank[v, start : start + 256] = text(work.tokenize(texts)).last_hidden_state.half()
    bank[-1, 0] = text(work.tokenize([""])).last_hidden_state[0].half()
    draft = stored.with_suffix(".tmp")
    torch.save(bank, draft)
    os.replace(draft, stored)
    return bank
