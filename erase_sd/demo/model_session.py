"""One model in memory and what is done with it; nothing of any visitor is kept in it."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.artifact.lora import LoraStyle, save_lora
from erase_sd.demo.budget import bounded_memory, watch
from erase_sd.demo.limits import Limits
from erase_sd.demo.pictures import Shot
from erase_sd.demo.snippets import file_name
from erase_sd.eval.before_after import subjects_for
from erase_sd.eval.detectors import Detector, DetectorSpec
from erase_sd.fit.preflight import Words
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.comfyui_names import COMFYUI
from erase_sd.models.embedded import usual
from erase_sd.models.opening import open_checkpoint
from erase_sd.pipelines.live import LiveErasure
from erase_sd.pipelines.loading import load_pipeline, model_path
from erase_sd.pipelines.sampling import generate, usual_guidance
from erase_sd.text.background import background
from erase_sd.text.encoder import TextEncoder

BATCH = 4  # images between two looks at whether the visitor has cancelled
_REMEMBERED = 512  # images of the untouched model, which are the same for everybody


class ModelSession:
    """A model that visitors share.

    Erasures are values that belong to a visitor; they touch the model while one batch of theirs is
    drawn, under a lock, and then it is as it was.

    Args:
        model: As `--model` takes it.
        device: cpu, cuda or mps.
        limits: What one job may ask for.

    Attributes:
        name: The model's name, as given.
        judged: Whether the judge of the embedded world knows what the model draws.
        guidance: Classifier-free guidance scale of its pictures.
        pipe: The diffusers pipeline.
        live: What is erased from it right now: nothing, between two calls.
        encoder: Its text encoder.
    """

    def __init__(self, model: str, *, device: str = "cpu", limits: Limits | None = None) -> None:
        self.name = model
        self.limits = limits or Limits()
        path = model_path(model)
        known = usual(path)
        self.judged = known.judge is not None
        self._judge = known.judge
        self.pipe: Any = load_pipeline(open_checkpoint(path), device=device)
        if hasattr(self.pipe, "video_processor"):
            raise ValueError(f"{model} makes films; the page shows pictures")
        self.guidance = usual_guidance(self.pipe)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                watch(part)
        self.live = LiveErasure.of(self.pipe)
        self.encoder = TextEncoder.of(self.pipe)
        self._lock = threading.Lock()
        self._before: OrderedDict[tuple[Any, ...], Image.Image] = OrderedDict()

    def warm(self) -> None:
        """Make what every first job would wait for: the encoder's vocabulary, one image."""
        with self._lock:
            background(self.encoder)
        _ = self._words
        for _ in self.draw([Shot("", "a photo of a dog", 0, False)], (), 1.0, steps=1):
            pass

    # -- erasing --------------------------------------------------------------------------------

    def erase(
        self,
        forget: Sequence[str],
        retain: Sequence[str] = (),
        *,
        method: str,
        robust: bool = False,
        name: str | None = None,
        toward: str | None = None,
    ) -> tuple[Erasure, float]:
        """Make an erasure of one concept; nothing is applied.

        Args:
            forget: Its prompts.
            retain: Prompts that should stay.
            method: How the directions that go are chosen.
            robust: Also close the left side, where the method has one.
            name: The concept's name; None takes the first prompt.
            toward: What should appear instead; None leaves it to the method.

        Returns:
            The erasure and the seconds it took.

        Raises:
            ValueError: If there is nothing to forget.
        """
        if not forget:
            raise ValueError("type what to forget, for instance: cat")
        with self._working():
            start = time.perf_counter()
            erasure = fit(
                self.encoder,
                forget,
                retain=retain,
                name=name,
                weights=self.live.originals(),
                settings=Settings(method, robust=robust, toward=toward),
            )
            return erasure, time.perf_counter() - start

    def open_file(self, path: Path) -> Erasure:
        """Read a visitor's erasure file.

        Raises:
            ValueError: If it is damaged, too large, or for another model.
        """
        with self._working():
            try:
                erasure = Erasure.load(path)
            except ValueError as error:  # names the file, but not where it lies
                raise ValueError(str(error).replace(str(path), path.name)) from error
            self.limits.check(erasure)
            widths = {s: edit.width for p in erasure.concepts for s, edit in p.right.items()}
            if any(width != self.encoder.widths.get(stream) for stream, width in widths.items()):
                raise ValueError(
                    f"the file is for text features of width {widths}, "
                    f"the model has {self.encoder.widths}"
                )
            erasure.check_text_encoder(self.encoder.fingerprint)
            erasure.check_base(self.live.originals())
            return erasure

    def stacked(self, stack: Sequence[Erasure], erasure: Erasure) -> tuple[Erasure, ...]:
        """A visitor's erasures with one more; it replaces those of the same name.

        Raises:
            ValueError: If there are too many, or they cannot act together.
        """
        names = set(erasure.names)
        new = (*(e for e in stack if not names & set(e.names)), erasure)
        if sum(len(e.concepts) for e in new) > self.limits.concepts:
            raise ValueError(f"at most {self.limits.concepts} concepts at once; remove one first")
        combine(new)  # refuses what cannot act together
        return new

    def words_hit(self, erasure: Erasure) -> list[tuple[str, float]]:
        """The words an erasure moves most, and how much."""
        words = self._words
        with self._working():
            return words.hit(erasure.edit, exclude=[f for p in erasure.concepts for f in p.forget])

    @cached_property
    def _words(self) -> Words:
        with self._working():
            return Words.of(self.encoder)

    # -- drawing --------------------------------------------------------------------------------

    def shots(self, stack: Sequence[Erasure], own: str, seed: int) -> list[Shot]:
        """What to look at: the visitor's own prompt, each erased concept, and what should stay."""
        found = [Shot("your prompt", own, seed, True)] if own else []
        parts = [p for e in stack for p in e.concepts]
        for subject in subjects_for([p.forget[0] for p in parts], bystanders=4):
            copies = 2 if subject.forget and len(parts) < 3 else 1
            for i in range(copies):
                prompt = subject.prompts[i % len(subject.prompts)]
                found.append(Shot(subject.label, prompt, seed + i, subject.forget, subject.target))
        return found

    def draw(
        self,
        shots: Sequence[Shot],
        stack: Sequence[Erasure],
        scale: float,
        *,
        steps: int | None = None,
    ) -> Iterator[list[Image.Image]]:
        """Draw some pictures, a batch at a time.

        Args:
            shots: What to draw.
            stack: Erasures that act, jointly; none for the untouched model.
            scale: What multiplies their change.
            steps: Denoising steps; None takes those of the limits.

        Yields:
            All pictures so far, in the order of `shots`.
        """
        steps = self.limits.steps if steps is None else steps
        done: list[Image.Image] = []
        for start in range(0, len(shots), BATCH):
            part = shots[start : start + BATCH]
            if stack and scale:
                done += self._batch(part, stack, scale, steps)
            else:
                done += self._untouched(part, steps)
            yield list(done)

    def _batch(
        self, shots: Sequence[Shot], stack: Sequence[Erasure], scale: float, steps: int
    ) -> list[Image.Image]:
        with self._working():
            try:
                if stack:
                    self.live.runtime = True  # no weight changes
                    self.live.set(stack, scale)
                return generate(
                    self.pipe,
                    [s.prompt for s in shots],
                    [s.seed for s in shots],
                    steps=steps,
                    guidance=self.guidance,
                    batch=BATCH,
                )
            finally:
                self.live.set((), 1.0)

    def _untouched(self, shots: Sequence[Shot], steps: int) -> list[Image.Image]:
        """Pictures of the untouched model; drawn once."""
        keys = [(s.prompt, s.seed, steps) for s in shots]
        known = dict(self._before)
        missing = [s for s, k in zip(shots, keys, strict=True) if k not in known]
        new = self._batch(missing, (), 1.0, steps) if missing else []
        known |= {(s.prompt, s.seed, steps): i for s, i in zip(missing, new, strict=True)}
        with self._lock:
            self._before.update({k: known[k] for k in keys})
            while len(self._before) > _REMEMBERED:
                self._before.popitem(last=False)
        return [known[k] for k in keys]

    def seen(self, images: Sequence[Image.Image]) -> list[str]:
        """What the model's own judge sees in each picture, or NudeNet in those of any other."""
        if self._detector is None:
            return ["NudeNet is not installed"] * len(images)
        found = [record["labels"] for record in self._detector(images)]
        if self.judged:
            return [str(labels[0]) for labels in found]
        return [", ".join(labels).lower() or "no nudity" for labels in found]

    @cached_property
    def _detector(self) -> Detector | None:
        if self._judge is not None:
            return DetectorSpec(self._judge).load()
        # An optional extra; the page says beside every picture that it is missing.
        return DetectorSpec("nudenet").load() if importlib.util.find_spec("nudenet") else None

    # -- taking it home -------------------------------------------------------------------------

    def take_home(self, stack: Sequence[Erasure], scale: float, folder: Path) -> dict[str, Path]:
        """Write what a visitor may take home.

        Returns:
            Paths by kind: "erasure", "peft" for diffusers and, where there are names for them,
            "hosts" for ComfyUI and web UIs.
        """
        total = combine(stack).scaled(scale)
        with self._working():
            made = {"erasure": total.save(folder / file_name(total, "erasure"), force=True)}
            weights = self.live.originals()
            styles: dict[str, LoraStyle] = {"peft": "peft"}
            if self.live.architecture.denoiser == "unet":
                styles["hosts"] = "kohya"
            elif self.live.architecture.name in COMFYUI:
                styles["hosts"] = "comfyui"
            for kind, style in styles.items():
                path = folder / file_name(total, style)
                made[kind] = save_lora(total, weights, path, style=style, force=True)
        return made

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """The model for one call alone, within the memory of a job."""
        with self._lock, bounded_memory(self.limits.job_bytes):
            yield
