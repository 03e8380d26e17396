"""The bench a training works on: a pipeline's parts, prompts as states, pictures as latents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from erase_sd.models.files import atomic_path
from erase_sd.pipelines.denoising import denoised, latents_of

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_DRAWN_AT_ONCE = 8  # fixed: a picture's last bits depend on its company


@dataclass(frozen=True)
class Task:
    """What is unlearned.

    Attributes:
        forget: Prompts to forget.
        retain: Prompts to keep, of methods that read some.
        toward: Prompt that the concept goes toward; None is the method's own.
        pictures: Folder of pictures of the concept; None lets the model draw them.

    Raises:
        ValueError: If there is nothing to forget.
    """

    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    toward: str | None = None
    pictures: Path | None = None

    def __post_init__(self) -> None:
        if not self.forget:
            raise ValueError("the forget prompts are empty; write at least one word")


@dataclass(frozen=True, eq=False)
class Bench:
    """A Stable Diffusion pipeline in parts, and a seed that everything random follows from.

    Attributes:
        pipe: The pipeline; its UNet is what is trained.
        task: What is unlearned.
        seed: Of noise, time steps and drawn pictures.
        guidance: Scale of drawn pictures.
        work: Folder where drawn pictures are kept; None keeps them nowhere.
        bf16: Predict in bfloat16; the weights stay float32.
    """

    pipe: Any
    task: Task
    seed: int = 0
    guidance: float = 7.5
    work: Path | None = None
    bf16: bool = False
    scheduler: Any = field(init=False)

    def __post_init__(self) -> None:
        # DDIM, as all the papers sample: deterministic and without memory.
        scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        object.__setattr__(self, "scheduler", scheduler)

    @property
    def network(self) -> nn.Module:
        """The denoiser."""
        found: nn.Module = self.pipe.unet
        return found

    def predict(
        self, x: Tensor, t: Tensor, states: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The denoiser's output `(n, c, h, w)`, float32.

        Args:
            x: `(n, c, h, w)` noisy latents.
            t: Time steps, `()` or `(n,)`.
            states: `(n, L, d)` text states.
            weights: Tensors to use in place of its own, by name.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = functional_call(self.network, dict(weights or {}), (x, t, states)).sample
        return out.float()

    @torch.no_grad()
    def states(self, prompts: Sequence[str]) -> Tensor:
        """Text states `(n, L, d)`."""
        out: Tensor = self.pipe.encode_prompt(list(prompts), self.pipe.device, 1, False)[0]
        return out

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Pure noise `(count, c, h, w)` to draw from."""
        config = self.pipe.unet.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        drawn = torch.randn(shape, generator=generator).to(self.pipe.device)
        return drawn * self.scheduler.init_noise_sigma

    def on_the_way(
        self,
        states: Tensor,
        null: Tensor,
        steps: int,
        guidance: float,
        generator: torch.Generator,
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Latents that the model as it is now reaches on the way to a picture.

        Args:
            states: `(n, L, d)` of the prompts.
            null: `(1, L, d)` of the empty prompt.
            steps: Of the whole way.
            guidance: Classifier-free guidance scale.
            generator: Of the noise, and of how far the way goes.
            weights: As for `predict`.

        Returns:
            Latents `(n, c, h, w)` and the time step `()` that their noise belongs to.
        """
        self.scheduler.set_timesteps(steps, device=self.pipe.device)
        until = int(torch.randint(0, steps, (), generator=generator))
        way = self.scheduler.timesteps
        start, empty = self.noise(len(states), generator), null.expand_as(states)
        x = denoised(
            lambda x, t, s: self.predict(x, t, s, weights),
            self.scheduler, start, states, empty, guidance=guidance, over=way[:until],
        )  # fmt: skip
        return x, way[until]

    def pictures_of(self, prompts: Sequence[str], count: int, steps: int) -> Tensor:
        """Latents `(count, c, h, w)` of pictures that the model draws of some prompts in turn.

        Must be called before anything is trained. They are kept in the work folder batch by batch,
        so an interrupted training does not draw twice.
        """
        told = [prompts[i % len(prompts)] for i in range(count)]
        key = hashlib.sha256(repr((told, steps, self.seed, self.guidance)).encode()).hexdigest()
        parts = []
        for start in tqdm(
            range(0, count, _DRAWN_AT_ONCE), desc="pictures", unit="batch", delay=2, leave=False
        ):
            kept = self.work / f"pictures-{key[:12]}-{start:05d}.safetensors" if self.work else None
            if kept is None or not kept.is_file():
                now = self._drawn(told[start : start + _DRAWN_AT_ONCE], steps, start)
                if kept is not None:
                    with atomic_path(kept, force=True) as draft:
                        save_file({"latents": now.cpu().contiguous()}, draft)
                parts.append(now)
            else:
                parts.append(load_file(kept)["latents"].to(self.pipe.device))
        return torch.cat(parts)

    @torch.no_grad()
    def _drawn(self, prompts: list[str], steps: int, first: int) -> Tensor:
        seeds = [(self.seed << 20) + first + i for i in range(len(prompts))]
        latents: Tensor = self.pipe(
            prompts,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            num_inference_steps=steps,
            guidance_scale=self.guidance,
            output_type="latent",
        ).images
        return latents

    def concept_pictures(self, prompts: Sequence[str], count: int, steps: int) -> Tensor:
        """Latents `(n, c, h, w)` of the concept: the task's folder, or drawn.

        Raises:
            ValueError: If the folder holds no picture.
        """
        folder = self.task.pictures
        if folder is None:
            return self.pictures_of(prompts, count, steps)
        files = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES)
        if not files:
            raise ValueError(f"expected pictures ({', '.join(PICTURES)}) in {folder}, got none")
        parts = []
        for file in files:  # one at a time: an autoencoder needs gigabytes for many at full size
            with Image.open(file) as image:
                parts.append(latents_of(self.pipe, [image]))
        return torch.cat(parts)


def in_sentences(prompts: Sequence[str]) -> tuple[str, ...]:
    """Short prompts as "a photo of ..."; those of over three words are sentences already.

    >>> in_sentences(["cat", "a cat on a mat"])
    ('a photo of cat', 'a cat on a mat')
    """
    return tuple(p if len(p.split()) > 3 else f"a photo of {p}" for p in prompts)
