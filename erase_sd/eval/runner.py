"""Draw a protocol's images, resumably and on many devices; judge them; write the numbers.

Images are drawn in fixed batches, so that a resumed run, or one on several processes, computes
every image in the same company and gets the same bits. A batch is done when its record is there,
and the record is written last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from erase_sd.artifact.erasure import combine
from erase_sd.eval.attacks import LEARNING, attacked, parse
from erase_sd.eval.attacks.target import Target, own_pictures
from erase_sd.eval.detectors import Labels
from erase_sd.eval.distances import DISTANCES, distances_of, pictures_in
from erase_sd.eval.features import extract, lpips, scoring_clip
from erase_sd.eval.protocol import Protocol
from erase_sd.eval.rows import Row
from erase_sd.eval.run_folder import (
    ORIGINAL,
    Variant,
    batches,
    claim,
    labels,
    manifest,
    record,
    store,
    write_json,
)
from erase_sd.eval.scores import accuracy, clip_score, counts, instead, shares, short
from erase_sd.pipelines.live import LiveErasure
from erase_sd.processes import Share


def evaluate(
    protocol: Protocol,
    variants: Sequence[Variant],
    pipeline: Callable[[str], Any],
    out: Path,
    share: Share | None = None,
    *,
    real: Path | None = None,
) -> dict[str, Any] | None:
    """Draw what is not there yet, judge and measure it.

    Args:
        protocol: What to draw.
        variants: With which models.
        pipeline: Loads the pipeline of a variant's `model`, once.
        out: The run's folder; resumed if it is one.
        share: This process's part; default: all of it.
        real: Folder of real pictures that distances are also taken to; its sub-folders are classes.

    Returns:
        The contents of `results.json`, in the first process; None in others.

    Raises:
        ValueError: If something that measures is not here, or the folder is another run's.
    """
    share = share or Share()
    if share.process == 0:
        prepare(protocol, real)
        claim(protocol, variants, out)
    share.wait()
    draw(protocol, variants, pipeline, out, share)
    share.wait()
    return measure(protocol, variants, out, real) if share.process == 0 else None


def draw(
    protocol: Protocol,
    variants: Sequence[Variant],
    pipeline: Callable[[str], Any],
    out: Path,
    share: Share,
) -> None:
    """Draw this process's batches that are not there yet."""
    own = [
        (n, rows)
        for n, rows in enumerate(batches(protocol))
        if n % share.processes == share.process
    ]
    todo = [(v, n, rows) for v in variants for n, rows in own if not record(out, v, n).is_file()]
    applied: tuple[str, str] | None = None
    live: LiveErasure | None = None
    label = f"images of {protocol.name}"
    for variant, number, rows in tqdm(todo, desc=label, unit="batch", disable=share.process > 0):
        group = rows[0].group
        pipe = pipeline(variant.model_of(group))
        if live is None or applied != (variant.name, group):
            if live is not None:
                live.take()
            live = LiveErasure.of(pipe)
            erasure = variant.erasure(group)
            if erasure is not None:
                live.add(erasure)
            applied = variant.name, group
        if rows[0].attack:
            images = _attacked_batch(pipe, live, protocol, rows, variant, pipeline)
        else:
            images = _batch(pipe, protocol, rows, prompt=[r.prompt for r in rows])
        store(out, variant, number, zip(rows, images, strict=True))
    if live is not None:
        live.take()


def _batch(pipe: Any, protocol: Protocol, rows: Sequence[Row], **told: Any) -> list[Image.Image]:
    """Pictures of some rows, told what to draw by prompts or text states."""
    size = protocol.generation.size
    shape = {"height": size, "width": size} if size else {}
    noise = [torch.Generator("cpu").manual_seed(r.seed) for r in rows]
    images = pipe(
        generator=noise,
        num_inference_steps=protocol.generation.steps,
        guidance_scale=rows[0].guidance,
        **shape,
        **told,
    ).images
    return list(images)


def _attacked_batch(
    pipe: Any,
    live: LiveErasure,
    protocol: Protocol,
    rows: Sequence[Row],
    variant: Variant,
    pipeline: Callable[[str], Any],
) -> list[Image.Image]:
    """The same under attack, with what the attack finds against the pipeline as it is now."""
    first, original = rows[0], pipeline("")
    learns = parse(first.attack)[0] in LEARNING
    with live.paused():
        pictures = own_pictures(original, first.want) if learns else []
    carried = combine(live.erasures) if live.erasures else variant.baked
    model = variant.model_of(first.group)
    if first.attack == "revival" and carried is None and model:
        told = "the revival attack has nothing to invert"
        raise ValueError(f"{model} carries no erasure file: {told}")
    edit = carried.edit if carried is not None else None
    target = Target(
        pipe,
        first.want,
        first.prompt,
        pictures,
        edit,
        original=original,
        paused=live.paused,
    )
    with attacked(first.attack, target) as found:
        if callable(found):
            steps = protocol.generation.steps
            return found([r.seed for r in rows], steps, first.guidance)
        if isinstance(found, str):
            return _batch(pipe, protocol, rows, prompt=[found] * len(rows))
        empty = pipe.encode_prompt("", pipe.device, 1, False)[0]
        states = {"prompt_embeds": found, "negative_prompt_embeds": empty}
        many = {k: v.to(pipe.device).expand(len(rows), -1, -1) for k, v in states.items()}
        return _batch(pipe, protocol, rows, **many)


def prepare(protocol: Protocol, real: Path | None = None) -> None:
    """Load everything that will measure, so that what is missing is told before an image is drawn.

    Raises:
        ValueError: Naming it.
    """
    detector = protocol.detector.load()
    known = getattr(detector, "vocabulary", None)
    unknown = sorted({r.want for r in protocol.rows if r.want} - known) if known is not None else []
    if unknown:
        told = "which the protocol asks for"
        raise ValueError(f"the detector {detector.name} knows no {unknown[0]!r}, {told}")
    if real is not None:
        pictures_in(real)
    if DISTANCES.keys() & set(protocol.metrics):
        extract(protocol.features, [Image.new("RGB", (64, 64))] * 2)
    if "clip-score" in protocol.metrics:
        scoring_clip(protocol.features)
    if "lpips" in protocol.metrics:
        lpips(np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 64, 64, 3), np.float32))


def measure(
    protocol: Protocol, variants: Sequence[Variant], out: Path, real: Path | None = None
) -> dict[str, Any]:
    """All metrics of all variants from what is on disk; written as `results.json`."""
    entries = {v.name: manifest(protocol, v, out) for v in variants}
    seen = {v.name: labels(protocol, v, entries[v.name], out) for v in variants}
    numbers = {
        v.name: {"about": v.about}
        | _from_labels(protocol, seen[v.name], seen.get(ORIGINAL))
        | _from_algebra(protocol, v)
        for v in variants
    }
    paths = {v.name: [out / v.name / e["file"] for e in entries[v.name]] for v in variants}
    if "clip-score" in protocol.metrics:
        embed, prompts = scoring_clip(protocol.features), [r.prompt for r in protocol.rows]
        for name in numbers:
            numbers[name]["clip score"] = clip_score(embed, paths[name], prompts)
    if ORIGINAL in paths:
        for name, found in distances_of(protocol, paths, real).items():
            numbers[name] |= found
    result = {
        "protocol": protocol.describe(), "metrics": list(protocol.metrics), "variants": numbers
    }  # fmt: skip
    write_json(out / "results.json", result)
    return result


def _from_labels(
    protocol: Protocol, found: Sequence[Labels], original: Sequence[Labels] | None
) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    if "accuracy" in protocol.metrics:
        numbers["accuracy"] = accuracy(protocol.rows, found)
    if "attacks" in protocol.metrics:
        numbers["attacks"] = shares(protocol.rows, found, lambda r: r.attack or "none")
    if "parts" in protocol.metrics:
        numbers["parts"] = shares(protocol.rows, found, lambda r: r.part)
    if "instead" in protocol.metrics:
        numbers["instead"] = instead(protocol.rows, found)
    if "counts" in protocol.metrics:
        numbers["counts"] = counts(found, original)
    return numbers


def _from_algebra(protocol: Protocol, variant: Variant) -> dict[str, Any]:
    """The certificates of what a variant applies for each group, by concept."""
    made = {g: variant.erasure(g) for g in protocol.groups}
    told = {
        g: {p.name: short(p.certificate) for p in erasure.concepts}
        for g, erasure in made.items()
        if erasure is not None
    }
    return {"certificates": told} if told else {}
