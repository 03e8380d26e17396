"""Draw a protocol's images, resumably and on many devices; judge them; write the numbers.

Images are drawn in fixed batches, so that a resumed run, or one on several processes, computes every
image in the same company and gets the same bits. A batch is done when its record is there, and the
record is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from erase_sd.artifact.erasure import Erasure
from erase_sd.eval.detectors import open_images
from erase_sd.eval.metrics import bootstrap, cmmd, frechet_distance, kernel_distance
from erase_sd.eval.protocol import Protocol, Row
from erase_sd.models.files import atomic_path, file_hash

ORIGINAL = "original"
# Which accuracies a row of each role enters.
NAMES = {"forget": ("UA",), "retain": ("RA",), "in-domain": ("RA", "IRA"), "cross-domain": ("RA", "CRA")}


@dataclass(frozen=True)
class Variant:
    """One model to evaluate.

    Attributes:
        name: As it appears in results; a folder of the run bears it.
        model: Key of the pipeline it is drawn with.
        about: What it is, JSON-ready.
        erasure: For a group, the erasure to apply; None leaves the model as it is.
        baked: What a checkpoint of its own says it carries.
    """

    name: str
    model: str
    about: dict[str, Any]
    erasure: Callable[[str], Erasure | None] = lambda group: None
    baked: Erasure | None = None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in order, so that equal content is equal bytes."""
    with atomic_path(path, force=True) as draft:
        draft.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def batches(protocol: Protocol) -> list[list[Row]]:
    """The rows in fixed batches, each of one group."""
    size, made = protocol.generation.batch, []
    for group in protocol.groups:
        rows = [r for r in protocol.rows if r.group == group]
        # The scale is one for a batch in diffusers; an attack is made for one prompt.
        kinds = dict.fromkeys((r.guidance, r.attack, r.prompt if r.attack else "") for r in rows)
        for guidance, attack, prompt in kinds:
            same = [
                r for r in rows if (r.guidance, r.attack) == (guidance, attack) and (not attack or r.prompt == prompt)
            ]
            made += [same[i : i + size] for i in range(0, len(same), size)]
    return made


def draw(
    protocol: Protocol,
    variants: Sequence[Variant],
    pipeline: Callable[[str], Any],
    out: Path,
    *,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Draw what is not there yet.

    Args:
        protocol: What to draw.
        variants: With which models.
        pipeline: Loads the pipeline of a variant's `model`, once.
        out: The run's folder.
        process: Number of this process.
        processes: How many share the work.
    """
    from erase_sd.pipelines.live import LiveErasure

    plan = batches(protocol)
    todo = []
    for variant in variants:
        for number, rows in enumerate(plan):
            if number % processes == process and not _record(out, variant, number).is_file():
                todo.append((variant, number, rows))
    applied: tuple[str, str] | None = None
    live: Any = None
    for variant, number, rows in tqdm(todo, desc=f"images of {protocol.name}", unit="batch", disable=process > 0):
        pipe = pipeline(variant.model)
        if applied != (variant.name, rows[0].group):
            if live is not None:
                live.take()
            live = LiveErasure.of(pipe)
            erasure = variant.erasure(rows[0].group)
            if erasure is not None:
                live.add(erasure)
            applied = variant.name, rows[0].group
        images = _draw_rows(pipe, live, protocol, rows, variant, pipeline)
        folder = out / variant.name / "images"
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for row, image in zip(rows, images, strict=True):
            path = folder / f"{row.id}.png"
            with atomic_path(path, force=True) as draft:
                image.save(draft, format="PNG")
            entries.append(asdict(row) | {"file": f"images/{row.id}.png", "sha256": file_hash(path)})
        write_json(_record(out, variant, number), entries)
    if live is not None:
        live.take()


def _draw_rows(
    pipe: Any, live: Any, protocol: Protocol, rows: Sequence[Row], variant: Variant, pipeline: Callable[[str], Any]
) -> list[Image.Image]:
    """One batch; under attack, with what the attack found against the pipeline as it is now."""
    import torch

    options: dict[str, Any] = {"num_inference_steps": protocol.generation.steps, "guidance_scale": rows[0].guidance}
    if protocol.generation.size:
        options |= {"height": protocol.generation.size, "width": protocol.generation.size}

    def noise() -> list[torch.Generator]:
        return [torch.Generator("cpu").manual_seed(r.seed) for r in rows]

    first = rows[0]
    if not first.attack:
        return list(pipe([r.prompt for r in rows], generator=noise(), **options).images)
    from erase_sd.artifact.erasure import combine
    from erase_sd.eval.attack import attacked, own_pictures

    original = pipeline("")
    with live.paused():
        pictures = own_pictures(original, first.want)
    edit = combine(live.erasures).edit if live.erasures else variant.baked.edit if variant.baked else None
    if first.attack == "revival" and edit is None and variant.model:
        raise ValueError(f"{variant.model} carries no erasure file: the revival attack has nothing to invert")
    with attacked(
        pipe, first.attack, first.want, first.prompt, pictures=pictures, edit=edit, original=original
    ) as found:
        if isinstance(found, str):
            return list(pipe([found] * len(rows), generator=noise(), **options).images)
        empty = pipe.encode_prompt("", pipe.device, 1, False)[0]
        many = {"prompt_embeds": found, "negative_prompt_embeds": empty}
        many = {k: v.to(pipe.device).expand(len(rows), -1, -1) for k, v in many.items()}
        return list(pipe(generator=noise(), **many, **options).images)


def _record(out: Path, variant: Variant, number: int) -> Path:
    return out / variant.name / "batches" / f"{number:06d}.json"


def manifest(protocol: Protocol, variant: Variant, out: Path) -> list[dict[str, Any]]:
    """Every image of a variant, in the protocol's order; also written as `manifest.jsonl`.

    Raises:
        ValueError: If images are missing or were changed since.
    """
    entries: dict[str, dict[str, Any]] = {}
    for number in range(len(batches(protocol))):
        record = _record(out, variant, number)
        if not record.is_file():
            raise ValueError(f"{record} is missing: the run is not complete; run it again and it goes on")
        entries |= {e["id"]: e for e in json.loads(record.read_text(encoding="utf-8"))}
    ordered = [entries[row.id] for row in protocol.rows]
    for entry in ordered:
        path = out / variant.name / entry["file"]
        if not path.is_file() or file_hash(path) != entry["sha256"]:
            raise ValueError(f"{path} is missing or was changed; delete {path.parent.parent / 'batches'} and run again")
    with atomic_path(out / variant.name / "manifest.jsonl", force=True) as draft:
        draft.write_text("".join(json.dumps(e, sort_keys=True) + "\n" for e in ordered), encoding="utf-8")
    return ordered


def look(protocol: Protocol, variant: Variant, entries: Sequence[Mapping[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The detector's records, one for each image; kept, so that an image is looked at once."""
    import hashlib

    about = json.dumps(protocol.about_detector, sort_keys=True)
    store = out / variant.name / f"labels-{hashlib.sha256(about.encode()).hexdigest()[:12]}.json"
    known: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    new = [e for e in entries if e["sha256"] not in known]
    if new:
        detector = protocol.detector.load()
        for start in tqdm(range(0, len(new), 64), desc=f"{detector.name} on {variant.name}", unit="batch"):
            chunk = new[start : start + 64]
            seen = detector(open_images([out / variant.name / e["file"] for e in chunk]))
            known |= {e["sha256"]: record for e, record in zip(chunk, seen, strict=True)}
        write_json(store, known)
    return [known[e["sha256"]] for e in entries]


def extract(name: str, images: Sequence[Image.Image]) -> np.ndarray:
    """Features `(n, d)` of images by a named extractor.

    Raises:
        ValueError: If it is unknown or cannot be loaded here.
    """
    import torch

    if name == "judge":
        from erase_sd.eval.judge import embed

        return embed(images)
    if name == "emoji-clip" or name.startswith("clip:"):
        from erase_sd.eval.detectors import clip_embedder

        embedder = clip_embedder(name.removeprefix("clip:"))
        return np.concatenate([embedder(images[i : i + 64]) for i in range(0, len(images), 64)])
    if name not in ("inception-2048", "inception-64"):
        raise ValueError(f"no extractor {name!r}: judge, emoji-clip, clip:MODEL, inception-2048 or inception-64")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        network = FrechetInceptionDistance(feature=int(name.rpartition("-")[2])).inception.eval()
    except Exception as error:  # the library downloads its weights, or lacks a part of itself
        raise ValueError(f"cannot load {name} (pip install 'torchmetrics[image]', and the Hub within reach)") from error
    rows = []
    with torch.no_grad():
        for start in range(0, len(images), 32):
            pixels = np.stack([np.asarray(i.convert("RGB").resize((299, 299))) for i in images[start : start + 32]])
            rows.append(network(torch.from_numpy(pixels).permute(0, 3, 1, 2)).double().numpy())
    return np.concatenate(rows)


def measure(protocol: Protocol, variants: Sequence[Variant], out: Path) -> dict[str, Any]:
    """All metrics of all variants from what is on disk; written as `results.json`."""
    result: dict[str, Any] = {"protocol": protocol.describe(), "metrics": list(protocol.metrics), "variants": {}}
    entries = {v.name: manifest(protocol, v, out) for v in variants}
    labels = {v.name: look(protocol, v, entries[v.name], out) for v in variants}
    features: dict[str, np.ndarray] = {}
    distances = [m for m in protocol.metrics if m in ("frechet", "kid", "cmmd")]
    pixels: dict[str, np.ndarray] = {}
    for v in variants:
        if {"drift", "lpips", *distances} & set(protocol.metrics):
            images = open_images([out / v.name / e["file"] for e in entries[v.name]])
            if distances:
                features[v.name] = extract(protocol.features, images)
            if {"drift", "lpips"} & set(protocol.metrics):
                pixels[v.name] = np.stack([np.asarray(i, np.float32) / 255 for i in images])
    stays = np.array([r.role != "forget" for r in protocol.rows])
    for v in variants:
        numbers: dict[str, Any] = {"about": v.about}
        if "accuracy" in protocol.metrics:
            numbers["accuracy"] = accuracy(protocol.rows, labels[v.name])
        if "attacks" in protocol.metrics:
            numbers["attacks"] = success(protocol.rows, labels[v.name])
        if "counts" in protocol.metrics:
            numbers["counts"] = counts(labels[v.name], labels.get(ORIGINAL))
        if "clip-score" in protocol.metrics:
            numbers["clip score"] = clip_score(protocol, [out / v.name / e["file"] for e in entries[v.name]])
        certificates = {g: certificate for g in protocol.groups if (certificate := _certificate(v, g))}
        if certificates:
            numbers["certificates"] = certificates
        for metric, distance in (("drift", pixel_change), ("lpips", lpips)):
            if metric in protocol.metrics and ORIGINAL in pixels:
                change = distance(pixels[v.name], pixels[ORIGINAL])
                numbers[metric] = {
                    r: _interval(change[mask]) for r, mask in (("forget", ~stays), ("retain", stays)) if mask.any()
                }
        keep = stays if stays.any() else np.ones(len(stays), bool)
        functions = {"frechet": frechet_distance, "kid": kernel_distance, "cmmd": cmmd}
        for name in distances:
            if ORIGINAL in features:
                value = functions[name](features[ORIGINAL][keep], features[v.name][keep])
                numbers[f"{name} to the original"] = {"value": round(value, 6), "images": int(keep.sum())}
        result["variants"][v.name] = numbers
    write_json(out / "results.json", result)
    return result


def pixel_change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of images `(n, h, w, 3)` in 0..1, `(n,)`."""
    return np.abs(a - b).mean((1, 2, 3))


def lpips(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Learned perceptual distance (AlexNet) of images `(n, h, w, 3)` in 0..1, `(n,)`.

    Raises:
        ValueError: If its backbone is not here (it comes with torchvision, and its weights from the network).
    """
    import torch

    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).net.eval()
    except Exception as error:
        raise ValueError("LPIPS needs torchvision and its AlexNet weights; take lpips out of the metrics") from error
    pairs = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b)]
    with torch.no_grad():
        rows = [network(x, y, normalize=True).flatten() for x, y in zip(*(p.split(16) for p in pairs), strict=True)]
    return torch.cat(rows).double().numpy()


def _certificate(variant: Variant, group: str) -> dict[str, Any]:
    """The certificates of what a variant applies for a group, by concept, rounded."""
    erasure = variant.erasure(group)

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        if isinstance(value, list):
            return [short(v) for v in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {p.name: short(p.certificate) for p in erasure.parts} if erasure is not None else {}


def _interval(values: Iterable[float]) -> dict[str, float]:
    data = [float(v) for v in values]
    low, high = bootstrap(data)
    return {"mean": round(float(np.mean(data)), 6), "low": round(low, 6), "high": round(high, 6), "n": len(data)}


def accuracy(rows: Sequence[Row], labels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """UA (share of forget images without the concept) and RA (share of retain images that are right).

    With 95 % bootstrap intervals over images, and the same for each group. Where the protocol tells them apart
    also IRA and CRA, retained accuracy in the concept's own domain and across (UnlearnCanvas, arXiv 2402.11846).
    """
    hits: dict[tuple[str, str], list[float]] = {}
    for row, record in zip(rows, labels, strict=True):
        if row.want:
            right = float(row.want in record["labels"])
            for name in NAMES[row.role]:
                hits.setdefault((row.group, name), []).append(1 - right if name == "UA" else right)
    result: dict[str, Any] = {}
    for name in ("UA", "RA", "IRA", "CRA"):
        flat = [h for (_, n), values in hits.items() if n == name for h in values]
        if flat:
            result[name] = _interval(flat)
    result["groups"] = {
        group: {n: round(float(np.mean(v)), 6) for (g, n), v in hits.items() if g == group}
        for group in dict.fromkeys(g for g, _ in hits)
    }
    return result


def success(rows: Sequence[Row], labels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of images in which the concept is found, by attack ("none": by its own prompt), with intervals."""
    found: dict[str, list[float]] = {}
    for row, record in zip(rows, labels, strict=True):
        found.setdefault(row.attack or "none", []).append(float(row.want in record["labels"]))
    return {attack: _interval(values) for attack, values in found.items()}


def counts(labels: Sequence[Mapping[str, Any]], original: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """How often each label was found, in all and against the original."""
    total: dict[str, int] = {}
    for record in labels:
        for label in record["labels"]:
            total[label] = total.get(label, 0) + 1
    per_image = [float(len(r["labels"])) for r in labels]
    result: dict[str, Any] = {
        "total": sum(total.values()),
        "labels": dict(sorted(total.items())),
        "images with any": sum(bool(r["labels"]) for r in labels),
        "per image": _interval(per_image),
    }
    if original is not None:
        before = sum(len(r["labels"]) for r in original)
        result["decrease"] = round(1 - result["total"] / before, 6) if before else None
    return result


CLIP = "openai/clip-vit-large-patch14"  # of the CLIP score, where the protocol's features are no CLIP's


def _clip(protocol: Protocol) -> Callable[[Sequence[Any]], np.ndarray]:
    from erase_sd.eval.detectors import clip_embedder

    if protocol.features in ("judge", "emoji-clip"):
        return clip_embedder("emoji-clip")
    return clip_embedder(protocol.features.removeprefix("clip:") if protocol.features.startswith("clip:") else CLIP)


def prepare(protocol: Protocol) -> None:
    """Load everything that will measure, so that what is missing is told before an image is drawn.

    Raises:
        ValueError: Naming it.
    """
    detector = protocol.detector.load()
    known = getattr(detector, "vocabulary", None)
    unknown = sorted({r.want for r in protocol.rows if r.want} - known) if known is not None else []
    if unknown:
        raise ValueError(f"the detector {detector.name} knows no {unknown[0]!r}, which the protocol asks for")
    blank = [Image.new("RGB", (64, 64))] * 2
    if {"frechet", "kid", "cmmd"} & set(protocol.metrics):
        extract(protocol.features, blank)
    if "clip-score" in protocol.metrics:
        _clip(protocol)
    if "lpips" in protocol.metrics:
        lpips(np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 64, 64, 3), np.float32))


def clip_score(protocol: Protocol, paths: Sequence[Path]) -> dict[str, float]:
    """Mean of 100 times the cosine of picture and prompt, not below zero (Hessel et al., arXiv 2104.08718)."""
    embedder = _clip(protocol)
    values: list[float] = []
    for start in range(0, len(paths), 64):
        a = embedder(open_images(paths[start : start + 64]))
        b = embedder([r.prompt for r in protocol.rows[start : start + 64]])
        values += (100 * (a * b).sum(1)).clip(0).tolist()
    return _interval(values)


def start_run(protocol: Protocol, variants: Sequence[Variant], out: Path) -> None:
    """Claim the folder for this protocol and these variants, or go on with it.

    Raises:
        ValueError: If it holds another run.
    """
    mine = {"protocol": protocol.describe(), "variants": {v.name: v.about for v in variants}}
    path = out / "run.json"
    if path.is_file():
        other = json.loads(path.read_text(encoding="utf-8"))
        if other["protocol"]["hash"] != mine["protocol"]["hash"]:
            raise ValueError(
                f"{out} holds a run of {other['protocol']['name']} {other['protocol']['hash']}; choose another --out"
            )
        for name, about in mine["variants"].items():
            if other["variants"].get(name, about) != about:
                raise ValueError(f"{out} holds another variant named {name}; choose another --out")
        mine["variants"] = other["variants"] | mine["variants"]
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run; choose another --out")
    os.makedirs(out, exist_ok=True)
    write_json(path, mine)
