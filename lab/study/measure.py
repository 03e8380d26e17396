"""One edit of the study, measured: hits, drift and Fréchet distance of bystanders, attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from erase_sd.algebra.certificate import change, revivable
from erase_sd.algebra.methods import METHODS
from erase_sd.artifact.base import weight_gram
from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.emoji.judge import embed, judge
from erase_sd.emoji.models import EMOJI_SD
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import sample_scene
from erase_sd.emoji.world import available_objects, load_world, with_article
from erase_sd.eval.attacks.prompt import prompt_attack
from erase_sd.eval.metrics import frechet_distance, pixel_change
from erase_sd.fit.solve import Settings, fit
from erase_sd.fit.task import NEAR
from erase_sd.pipelines.live import LiveErasure
from erase_sd.pipelines.loading import load_pipeline
from erase_sd.text.background import background, meanings
from erase_sd.text.encoder import TextEncoder
from lab.journal import Journal
from lab.study.targets import Target, prompts_of

STEPS, GUIDANCE = 12, 3.0
DIRECTIONS = 16  # of the judge's features; the full covariance of tens of images is singular
BYSTANDERS = ("in", "out", "neighbour")
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        phase: What it is for; "published" is a method as its source has it, "robust" the default
            with a left side.
        method: Name of the method.
        setting: Options that differ from its defaults; None erases nothing.
        target: What is erased.
        count: Seeds, or for an attack images.
        steps: Denoising steps of every picture.
    """

    phase: Literal["tune", "tuned", "published", "robust", "attack"]
    method: str
    setting: Setting | None
    target: Target
    count: int
    steps: int = STEPS

    @property
    def key(self) -> str:
        """Names it in the journal; a method whose defaults change is measured again."""
        spec = METHODS.get(self.method)
        defaults = asdict(spec) if spec else {}
        for words in ("where", "summary", "source"):
            defaults.pop(words, None)
        setting = None if self.setting is None else dict(self.setting)
        told = [self.phase, self.method, setting, defaults, NEAR, asdict(self.target)]
        return json.dumps([*told, self.count, self.steps], sort_keys=True)


class Study:
    """The model, the journal and the measurements.

    Args:
        work: Folder of the journal; another model is another journal.
        model: Folder of the model.
        steps: Denoising steps of every picture.
    """

    def __init__(self, work: Path, model: Path = EMOJI_SD, *, steps: int = STEPS) -> None:
        self.steps = steps
        self.pipe = load_pipeline(model)
        self.live = LiveErasure.of(self.pipe)
        self.weights = self.live.originals()
        self.encoder = TextEncoder.of(self.pipe)
        digest = hashlib.sha256(self.encoder.fingerprint.encode())
        for weight in self.weights.values():
            digest.update(weight.numpy().tobytes())
        self.journal = Journal(work / f"study-{digest.hexdigest()[:12]}.jsonl")
        self._states: dict[str, torch.Tensor] = {}
        self._originals: dict[Any, Any] = {}

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[str], seed: int, *, states: torch.Tensor | None = None
    ) -> list[Image.Image]:
        """Images of prompts, or of text states, at `seed`, `seed + 1`, …; each encoded once."""
        new = [p for p in dict.fromkeys([*prompts, ""]) if p not in self._states]
        if new:
            self._states |= dict(zip(new, self.encoder.encode(new).states, strict=True))
        told = (
            torch.stack([self._states[p] for p in prompts])
            if states is None
            else states.expand(len(prompts), -1, -1)
        )
        images = self.pipe(
            prompt_embeds=told,
            negative_prompt_embeds=torch.stack([self._states[""]] * len(prompts)),
            generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
        ).images
        return list(images)

    @contextmanager
    def erased(self, erasure: Erasure | None) -> Iterator[None]:
        """The model without what an erasure takes, for a while."""
        if erasure is not None:
            self.live.add(erasure)
        try:
            yield
        finally:
            if erasure is not None:
                self.live.take()

    def make(self, method: str, setting: Setting, t: Target) -> Erasure:
        """The erasure of a target by a method at a setting."""
        options = dict(setting)
        apart = bool(options.pop("apart", False)) or t.kind == "ten"
        retain = list(t.retain) if METHODS[method].retain != "none" else []
        if options.pop("kept", None) == "vocabulary":
            ordinary = background(self.encoder)
            near = set(ordinary.near(meanings(self.encoder, list(t.forget)), NEAR))
            words = [p for i, p in enumerate(ordinary.prompts) if i not in near]
            retain += [p for p in words if p not in t.forget]
        groups = [[n] for n in t.forget] if apart else [list(t.forget)]
        settings = Settings.of(method=method, **options)
        return combine(
            [
                fit(
                    self.encoder,
                    group,
                    name=group[0],
                    retain=retain,
                    weights=self.weights,
                    settings=settings,
                )
                for group in groups
            ]
        )

    def measure(
        self, t: Target, erasure: Erasure | None, seed: int, roles: Sequence[str]
    ) -> dict[str, Any]:
        """Draw and judge all prompts of some roles: hits; pixels and features of bystanders."""
        by_role = {r: v for r, v in prompts_of(t).items() if r in roles and v}
        flat = [(role, p, want) for role, pairs in by_role.items() for p, want in pairs]
        with self.erased(erasure):
            images = self.draw([p for _, p, _ in flat], 1000 * seed)
        seen = judge(images)
        hits: dict[str, list[bool]] = {}
        for (role, _, want), top, artist in zip(flat, seen.top, seen.artist, strict=True):
            hits.setdefault(role, []).append(want in (top, artist))
        stays = [images[i] for i, (role, _, _) in enumerate(flat) if role in BYSTANDERS]
        return {
            "hits": hits,
            "pixels": np.stack([np.asarray(i) for i in stays]),
            "features": embed(stays),
        }

    def original(self, t: Target, seed: int, roles: Sequence[str]) -> dict[str, Any]:
        """The unedited model on the same prompts and seeds, drawn once."""
        key = t, seed, tuple(roles)
        if key not in self._originals:
            self._originals[key] = self.measure(t, None, seed, roles)
        found: dict[str, Any] = self._originals[key]
        return found

    def score(self, job: Job, roles: Sequence[str]) -> dict[str, Any]:
        """Everything about one edit, from the journal if it is there."""
        job = replace(job, steps=self.steps)
        if job.key in self.journal:
            return dict(self.journal.get(job.key))
        t = job.target
        erasure = self.make(job.method, job.setting or {}, t)
        runs = [
            (self.original(t, seed, roles), self.measure(t, erasure, seed, roles))
            for seed in range(job.count)
        ]
        before, after = (_shares([run[i]["hits"] for run in runs]) for i in (0, 1))
        drift = [pixel_change(base["pixels"], now["pixels"]).mean() for base, now in runs]
        old, new = (np.concatenate([run[i]["features"] for run in runs]) for i in (0, 1))
        entry = _about(job) | self._algebra(erasure, t)
        entry |= {"before": before, "after": after, "drift": float(np.mean(drift))}
        entry["frechet"] = frechet_distance(*on_directions(old, new, DIRECTIONS))
        return dict(self.journal.put(job.key, entry))

    def _algebra(self, erasure: Erasure, t: Target) -> dict[str, float]:
        """What needs no picture."""
        edit, subjects = erasure.edit, self.encoder.subjects(t.forget)["tokens"]
        edited = [self.weights[s.name] for s in erasure.editable(self.weights)]
        gram = weight_gram(edited, self.encoder.width)
        null = self.encoder.encode([""]).rows("all")
        return {
            "norm": edit.norm,
            "null_change": float(change(edit, null).max()),
            "revivable": float(revivable(edit, subjects, gram, null).max()),
        }

    def attacked(self, job: Job, iterations: int = 40) -> dict[str, Any]:
        """How often the judge finds an erased object: by its own prompt, after an attack."""
        job = replace(job, steps=self.steps)
        if job.key in self.journal:
            return dict(self.journal.get(job.key))
        t = job.target
        erasure = None if job.setting is None else self.make(job.method, job.setting, t)
        with self.erased(erasure):
            plain = self.draw([f"a photo of {with_article(t.name)}"] * job.count, 5000)
            states = prompt_attack(self.pipe, renders_of(t.name, 8), iterations=iterations)
            revived = self.draw([""] * job.count, 5000, states=states)
        shares = [float(np.mean([top == t.name for top in judge(i).top])) for i in (plain, revived)]
        entry = _about(job) | {"plain": shares[0], "attacked": shares[1]}
        return dict(self.journal.put(job.key, entry))


def _about(job: Job) -> dict[str, Any]:
    return {
        "phase": job.phase,
        "method": job.method,
        "setting": None if job.setting is None else dict(job.setting),
        "kind": job.target.kind,
        "name": job.target.name,
    }


def _shares(runs: Sequence[Mapping[str, Sequence[bool]]]) -> dict[str, float]:
    """Share of hits of each role over all seeds."""
    return {role: float(np.mean([h for run in runs for h in run[role]])) for role in runs[0]}


def on_directions(a: np.ndarray, b: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two feature sets on the `count` principal directions of the first, centred on it.

    With fewer images than dimensions a Fréchet distance of all of them means little; a few
    directions are estimated well from tens of images.
    """
    centre = a.mean(0)
    _, _, vt = np.linalg.svd(a - centre, full_matrices=False)
    return (a - centre) @ vt[:count].T, (b - centre) @ vt[:count].T


def pictures_of(t: Target, count: int, seed: int = 77) -> list[Image.Image]:
    """An attacker's pictures of a target: renders of its objects in turn, or by its artist."""
    if t.kind == "artist":
        return _renders(count, seed, artist=load_world().artists.index(t.name))
    each = -(-count // len(t.forget))
    return [i for name in t.forget for i in renders_of(name, each, seed)][:count]


def renders_of(name: str, count: int, seed: int = 77) -> list[Image.Image]:
    """An attacker's pictures of an object: renders."""
    return _renders(count, seed, index=load_world().names.index(name))


def _renders(
    count: int, seed: int, *, index: int | None = None, artist: int | None = None
) -> list[Image.Image]:
    """Scenes of one object, or by one artist."""
    rng = np.random.default_rng(seed)
    seen: list[Image.Image] = []
    while len(seen) < count:
        scene = sample_scene(rng, pairs=0)
        if index is not None and index in available_objects()[scene.artist]:
            seen.append(Image.fromarray(render(replace(scene, objects=(index,)))))
        elif artist is not None and scene.artist == artist:
            seen.append(Image.fromarray(render(scene)))
    return seen
