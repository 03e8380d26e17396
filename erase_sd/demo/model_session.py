"""What the demo does, without a page: one model in memory, any number of visitors, nothing kept of any."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from erase_sd.demo.recipe import file_name
from erase_sd.erasure import Erasure, combine
from erase_sd.preflight import Words

BATCH = 4  # images between two looks at whether the visitor has cancelled
_REMEMBERED = 512  # images of the untouched model, which are the same for everybody


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        prompt_length: Characters of a prompt.
        prompts: Prompts that are typed.
        expanded: Prompts after sets have been put in.
        concepts: Concepts that are erased at once.
    """

    prompt_length: int = 300
    prompts: int = 32
    expanded: int = 150
    concepts: int = 8

    def prompt_list(self, text: str, *, what: str) -> list[str]:
        """Prompts of a text box: one a line, or separated by commas.

        Raises:
            ValueError: If there are too many, or one is too long.
        """
        from erase_sd.prompts import read_prompts, set_names

        typed = [p.strip() for line in text.splitlines() for p in line.split(",") if p.strip()]
        if len(typed) > self.prompts:
            raise ValueError(f"at most {self.prompts} prompts to {what}, got {len(typed)}")
        for prompt in typed:
            if len(prompt) > self.prompt_length:
                raise ValueError(f"a prompt may have {self.prompt_length} characters, one to {what} has {len(prompt)}")
            # A visitor may name what is in the package, and no file of this machine.
            if prompt.startswith("file:") or (prompt.startswith("set:") and prompt[4:] not in set_names()):
                raise ValueError(f"{prompt!r}: here are prompts and the sets {', '.join(set_names())}")
        found = read_prompts(typed, what=what)
        if len(found) > self.expanded:
            raise ValueError(f"at most {self.expanded} prompts with all sets to {what}, got {len(found)}")
        return found

    def check(self, erasure: Erasure) -> None:
        """Refuse a file that would cost more than what can be made here.

        Raises:
            ValueError: With what is too much.
        """
        if not 0 < len(erasure.parts) <= self.concepts:
            raise ValueError(f"expected 1 to {self.concepts} concepts in the file, got {len(erasure.parts)}")
        for part in erasure.parts:
            prompts = [part.name, *part.forget, *part.retain]
            if not part.forget or not all(isinstance(p, str) for p in prompts):
                raise ValueError("the file names no forget prompts")
            if len(prompts) > 2 * self.expanded or max(map(len, prompts)) > self.prompt_length:
                raise ValueError(f"{part.name[:40]!r} has more or longer prompts than are taken here")
            if not 0 <= part.strength <= 10:
                raise ValueError(f"expected a strength between 0 and 10, got {part.strength}")


@dataclass(frozen=True)
class Shot:
    """One picture to draw.

    Attributes:
        label: What it is of.
        prompt: Its prompt.
        seed: Its seed.
        forget: Whether it should change.
        target: The object of the embedded world that it shows, or None.
    """

    label: str
    prompt: str
    seed: int
    forget: bool
    target: str | None = None


class Studio:
    """A model that visitors share.

    Erasures are values that belong to a visitor; they touch the model while one batch of theirs is drawn, under a
    lock, and then it is as it was.

    Args:
        model: As `--model` takes it.
        device: cpu, cuda or mps.
        limits: What one request may ask for.
    """

    def __init__(self, model: str, *, device: str = "cpu", limits: Limits | None = None) -> None:
        from erase_sd.checkpoints import open_checkpoint
        from erase_sd.pipelines.live import LiveErasure
        from erase_sd.pipelines.loading import is_embedded, load_pipeline, model_path
        from erase_sd.text import TextEncoder

        self.name = model
        self.limits = limits or Limits()
        path = model_path(model)
        self.embedded = is_embedded(path)
        self.pipe: Any = load_pipeline(open_checkpoint(path), device=device)
        self.live = LiveErasure.of(self.pipe)
        self.encoder = TextEncoder.of(self.pipe)
        self.guidance = 3.0 if self.embedded else 7.5
        self._lock = threading.Lock()
        self._before: OrderedDict[tuple[Any, ...], Image.Image] = OrderedDict()

    def warm(self) -> None:
        """Make what every first request would wait for: the summary of the encoder's vocabulary, one image."""
        from erase_sd.background import background

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
        strength: float | None = None,
        robust: bool = False,
        name: str | None = None,
    ) -> tuple[Erasure, float]:
        """Make an erasure of one concept; nothing is applied.

        Returns:
            The erasure and the seconds it took.
        """
        from erase_sd.fitting import fit

        if not forget:
            raise ValueError("type what to forget, for instance: cat")
        with self._lock:
            start = time.perf_counter()
            erasure = fit(
                self.encoder,
                forget,
                retain=retain,
                method=method,
                strength=strength,
                robust=robust,
                name=name,
                weights=self.live.originals(),
            )
            return erasure, time.perf_counter() - start

    def open(self, path: str | Path) -> Erasure:
        """Read a visitor's erasure file and check that it is for this model."""
        try:
            erasure = Erasure.load(path)
        except ValueError as error:  # names the file, but not where it lies
            raise ValueError(str(error).replace(str(path), Path(path).name)) from error
        self.limits.check(erasure)
        widths = {stream: edit.width for p in erasure.parts for stream, edit in p.edits.items()}
        if any(width != self.encoder.widths.get(stream) for stream, width in widths.items()):
            raise ValueError(f"the file is for text features of width {widths}, the model has {self.encoder.widths}")
        with self._lock:
            erasure.check_text_encoder(self.encoder.fingerprint)
            erasure.check_base(self.live.originals())
        return erasure

    def stacked(self, stack: Sequence[Erasure], erasure: Erasure) -> tuple[Erasure, ...]:
        """A visitor's erasures with one more; it replaces those of the same name."""
        names = set(erasure.names)
        new = (*(e for e in stack if not names & set(e.names)), erasure)
        if sum(len(e.parts) for e in new) > self.limits.concepts:
            raise ValueError(f"at most {self.limits.concepts} concepts at once; remove one first")
        combine(new)  # refuses what cannot act together
        return new

    def words_hit(self, erasure: Erasure) -> list[tuple[str, float]]:
        """The words an erasure moves most."""
        return self._words.hit(erasure.edit, exclude=[f for p in erasure.parts for f in p.forget])

    @cached_property
    def _words(self) -> Words:
        with self._lock:
            return Words.of(self.encoder)

    # -- drawing --------------------------------------------------------------------------------

    def shots(self, stack: Sequence[Erasure], own: str, seed: int) -> list[Shot]:
        """What to look at: the visitor's own prompt, each erased concept, and things that should stay."""
        from erase_sd.eval.before_after import subjects_for

        found = [Shot("your prompt", own, seed, True)] if own else []
        parts = [p for e in stack for p in e.parts]
        for subject in subjects_for([p.forget[0] for p in parts], bystanders=4):
            copies = 2 if subject.forget and len(parts) < 3 else 1
            for i in range(copies):
                prompt = subject.prompts[i % len(subject.prompts)]
                found.append(Shot(subject.label, prompt, seed + i, subject.forget, subject.target))
        return found

    def draw(
        self, shots: Sequence[Shot], stack: Sequence[Erasure], scale: float, *, steps: int = 20
    ) -> Iterator[list[Image.Image]]:
        """Draw some pictures, a batch at a time.

        Args:
            shots: What to draw.
            stack: Erasures that act, jointly; none for the untouched model.
            scale: Times their own strength.
            steps: Denoising steps.

        Yields:
            All pictures so far, in the order of `shots`.
        """
        done: list[Image.Image] = []
        for start in range(0, len(shots), BATCH):
            part = shots[start : start + BATCH]
            done += self._batch(part, stack, scale, steps) if stack and scale else self._untouched(part, steps)
            yield list(done)

    def _batch(self, shots: Sequence[Shot], stack: Sequence[Erasure], scale: float, steps: int) -> list[Image.Image]:
        from erase_sd.pipelines.sampling import generate

        with self._lock:
            try:
                if stack:
                    # The prompt's embeddings are edited on their way in, where the method allows: no weight changes.
                    self.live.runtime = combine(stack).kinds == "kv"
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
        known |= {(s.prompt, s.seed, steps): image for s, image in zip(missing, new, strict=True)}
        with self._lock:
            self._before.update({k: known[k] for k in keys})
            while len(self._before) > _REMEMBERED:
                self._before.popitem(last=False)
        return [known[k] for k in keys]

    def seen(self, images: Sequence[Image.Image]) -> list[str]:
        """What the judge of the embedded world sees in each picture, or NudeNet in those of another model."""
        if self.embedded:
            from erase_sd.eval.judge import judge

            return judge(images).top
        if self._nudenet is None:
            return ["NudeNet is not installed"] * len(images)
        return [", ".join(found["labels"]).lower() or "no nudity" for found in self._nudenet(images)]

    @cached_property
    def _nudenet(self) -> Any:
        if importlib.util.find_spec("nudenet") is None:
            return None  # an optional extra; the page says so beside every picture
        from erase_sd.eval.detectors import NudeNet

        return NudeNet()

    # -- taking it home -------------------------------------------------------------------------

    def files(self, stack: Sequence[Erasure], scale: float, folder: Path) -> dict[str, Path]:
        """Write what a visitor may take home.

        Returns:
            Paths by kind: "erasure", "peft" and, where that format exists, "kohya".
        """
        from erase_sd.lora import save_lora

        total = combine(stack).scaled(scale)
        made = {"erasure": total.save(folder / file_name(total, "erasure"), force=True)}
        with self._lock:
            weights = self.live.originals()
            styles = ("peft", "kohya") if self.live.architecture.denoiser == "unet" else ("peft",)
            for style in styles:
                made[style] = save_lora(total, weights, folder / file_name(total, style), style=style, force=True)
        return made
