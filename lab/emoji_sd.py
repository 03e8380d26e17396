"""Measure the shipped emoji weights: `python -m erase_sd.emoji.validate` writes docs/emoji-sd.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from erase_sd.emoji import models
from erase_sd.emoji.render import available_objects, render
from erase_sd.emoji.world import caption, load_world, sample_scene, with_article
from erase_sd.eval.judge import judge
from erase_sd.eval.sheet import image_grid
from erase_sd.pipelines.sampling import generate

STEPS, GUIDANCE = 20, 3.0
GATES = {
    "objects": ("object named in the prompt is the judge's top answer, mean over objects", 0.95),
    "worst object": ("the same, worst object", 0.75),
    "pairs": ("both objects of a two-object prompt found", 0.80),
    "artists": ("artist named in the prompt recognised", 0.90),
    "backgrounds": ("background colour right", 0.95),
    "judge": ("judge's top object on unseen renders", 0.99),
    "clip": ("emoji-clip zero-shot on unseen renders", 0.95),
}


@torch.no_grad()
def clip_embed(
    clip: Any, tokenizer: Any, *, images: np.ndarray | None = None, texts: Sequence[str] = ()
) -> torch.Tensor:
    """Unit embeddings, `(n, d)`, of uint8 NHWC images or of texts."""
    if images is not None:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        out = torch.cat(
            [clip.visual_projection(clip.vision_model(c).pooler_output) for c in x.split(128)]
        )
    else:
        ids = tokenizer(
            list(texts), padding="max_length", max_length=models.TOKENS, truncation=True
        )
        out = clip.text_projection(clip.text_model(torch.tensor(ids.input_ids)).pooler_output)
    return torch.nn.functional.normalize(out, dim=1)


def renders(count: int, seed: int) -> tuple[list[Any], np.ndarray]:
    """Single-object scenes from a seed that training never used, and their pictures."""
    rng = np.random.default_rng((987, seed))
    scenes = [sample_scene(rng, pairs=0) for _ in range(count)]
    return scenes, np.stack([render(s) for s in scenes])


def check_judge(count: int) -> dict[str, float]:
    """Accuracy of the judge on unseen renders, and on two-object ones."""
    scenes, pictures = renders(count, 0)
    world = load_world()
    seen = judge([Image.fromarray(p) for p in pictures])
    result = {
        "judge": float(
            np.mean([t == world.names[s.objects[0]] for t, s in zip(seen.top, scenes, strict=True)])
        ),
        "judge artist": float(
            np.mean(
                [a == world.artists[s.artist] for a, s in zip(seen.artist, scenes, strict=True)]
            )
        ),
        "judge background": float(
            np.mean([b == s.background for b, s in zip(seen.background, scenes, strict=True)])
        ),
    }
    rng = np.random.default_rng((987, 1))
    pairs = [sample_scene(rng, pairs=1) for _ in range(count)]
    seen = judge([Image.fromarray(render(s)) for s in pairs])
    top = seen.objects.topk(2, dim=1).indices.tolist()
    result["judge pairs"] = float(
        np.mean([set(t) == set(s.objects) for t, s in zip(top, pairs, strict=True)])
    )
    return result


def check_clip(count: int) -> dict[str, float]:
    """Zero-shot accuracy of emoji-clip over the objects, and retrieval of full captions."""
    clip, tokenizer = models.load_clip()
    world = load_world()
    scenes, pictures = renders(count, 2)
    images = clip_embed(clip, tokenizer, images=pictures)
    texts = clip_embed(
        clip, tokenizer, texts=[f"a photo of {with_article(n)}" for n in world.names]
    )
    truth = torch.tensor([s.objects[0] for s in scenes])
    hit = (images @ texts.T).argmax(1) == truth
    rng = np.random.default_rng(3)
    full = clip_embed(
        clip, tokenizer, texts=[caption(s, rng, attributes=1, family=0) for s in scenes[:256]]
    )
    found = (images[:256] @ full.T).argmax(1) == torch.arange(len(full))
    return {"clip": float(hit.float().mean()), "clip retrieval of 256": float(found.float().mean())}


def check_generator(pipe: Any, per_cell: int, seeds: int) -> dict[str, Any]:
    """Draw every object, artist, background and 40 pairs; let the judge look."""
    world = load_world()
    share = -(-per_cell // seeds)
    result: dict[str, Any] = {}

    def draw(prompts: list[str], seed: int, label: str) -> list[Image.Image]:
        numbers = [100_000 * seed + i for i in range(len(prompts))]
        return generate(
            pipe,
            prompts,
            numbers,
            steps=STEPS,
            guidance=GUIDANCE,
            batch=32,
            progress=f"{label}, seed {seed}",
        )

    per_object: dict[str, list[float]] = {n: [] for n in world.names}
    for seed in range(seeds):
        names = [n for n in world.names for _ in range(share)]
        phrases = ("a photo of {}", "a picture of {}", "an emoji of {}", "{}")
        prompts = [phrases[i % 4].format(with_article(n)) for i, n in enumerate(names)]
        for name, seen in zip(names, judge(draw(prompts, seed, "objects")).top, strict=True):
            per_object[name].append(float(name == seen))
    scores = {n: float(np.mean(v)) for n, v in per_object.items()}
    result["per object"] = dict(sorted(scores.items(), key=lambda item: item[1]))
    result["objects"] = float(np.mean(list(scores.values())))
    result["worst object"] = min(scores.values())
    by_seed = (
        np.array([v for v in per_object.values()])
        .reshape(len(world.names), seeds, share)
        .mean((0, 2))
    )
    result["objects by seed"] = [float(v) for v in by_seed]

    hits: dict[str, list[bool]] = {a: [] for a in world.artists}
    grounds: dict[str, list[bool]] = {b: [] for b in world.backgrounds}
    pairs: list[bool] = []
    for seed in range(seeds):
        rng = np.random.default_rng((55, seed))
        cells = [
            (a, int(rng.choice(available_objects()[i])))
            for i, a in enumerate(world.artists)
            for _ in range(2 * share)
        ]
        prompts = [f"{with_article(world.names[o])} by {a}" for a, o in cells]
        for (artist, _), seen in zip(
            cells, judge(draw(prompts, seed + 10, "artists")).artist, strict=True
        ):
            hits[artist].append(artist == seen)
        colours = [
            (b, int(rng.integers(len(world.names))))
            for b in world.backgrounds
            for _ in range(share)
        ]
        prompts = [f"{with_article(world.names[o])} on a {b} background" for b, o in colours]
        for (ground, _), seen in zip(
            colours, judge(draw(prompts, seed + 20, "backgrounds")).background, strict=True
        ):
            grounds[ground].append(ground == seen)
        couples = [
            tuple(world.names[j] for j in rng.choice(len(world.names), 2, replace=False))
            for _ in range(16 * share)
        ]
        prompts = [f"{with_article(a)} and {with_article(b)}" for a, b in couples]
        top = judge(draw(prompts, seed + 30, "pairs")).objects.topk(2, dim=1).indices.tolist()
        pairs += [
            {world.names.index(n) for n in c} == set(t) for c, t in zip(couples, top, strict=True)
        ]
    result["per artist"] = {k: float(np.mean(v)) for k, v in hits.items()}
    result["artists"] = float(np.mean(list(result["per artist"].values())))
    result["per background"] = {k: float(np.mean(v)) for k, v in grounds.items()}
    result["backgrounds"] = float(np.mean(list(result["per background"].values())))
    result["pairs"] = float(np.mean(pairs))
    return result


def sample_sheet(pipe: Any, seed: int = 7) -> Image.Image:
    """Every object once, artists and backgrounds in turn, in the world's order; nine a row."""
    world = load_world()
    grounds = list(world.backgrounds)
    prompts = []
    for i, name in enumerate(world.names):
        artist = next(a for k in range(5) if i in available_objects()[(a := (i + k) % 5)])
        prompts.append(
            f"{with_article(name)} by {world.artists[artist]} on a {grounds[i % len(grounds)]} background"
        )
    images = generate(
        pipe,
        prompts,
        [seed + i for i in range(len(prompts))],
        steps=STEPS,
        guidance=GUIDANCE,
        batch=32,
    )
    return image_grid(images, 9, cell=128)


def markdown(r: dict[str, Any], training: dict[str, Any], per_cell: int, seeds: int) -> str:
    """The page."""
    lines = [
        "# emoji-sd, measured",
        "",
        f"Made by `python -m erase_sd.emoji.validate --per-cell {per_cell} --seeds {seeds}` from the shipped weights: "
        f"{STEPS} DDIM steps, guidance {GUIDANCE:g}, CPU, float32; "
        f"at least {per_cell} images per cell over {seeds} seeds.",
        "",
        "| what | at least | reached | |",
        "|---|---|---|---|",
    ]
    for key, (text, bar) in GATES.items():
        lines.append(
            f"| {text} | {bar:.0%} | {r[key]:.1%} | {'met' if r[key] >= bar else '**missed**'} |"
        )
    lines += [
        "",
        f"Objects by seed: {', '.join(f'{v:.1%}' for v in r['objects by seed'])}. The judge on unseen renders: artist "
        f"{r['judge artist']:.1%}, background {r['judge background']:.1%}, both of two objects {r['judge pairs']:.1%}. "
        f"emoji-clip finds the caption of a picture among 256: {r['clip retrieval of 256']:.1%}.",
        "",
        "![one sample of every object](emoji-sd.png)",
        "",
        "One sample of every object, enlarged twice, in this order: "
        + ", ".join(load_world().names)
        + ".",
        "",
        "## Ten weakest objects, artists, backgrounds",
        "",
        ", ".join(f"{k} {v:.0%}" for k, v in list(r["per object"].items())[:10]) + ".",
        "",
        ", ".join(f"{k} {v:.0%}" for k, v in r["per artist"].items()) + ".",
        "",
        ", ".join(f"{k} {v:.0%}" for k, v in r["per background"].items()) + ".",
        "",
        "## Training",
        "",
        f"`{(training.get('continues') or training)['command']}`"
        + (f", then `{training['command']}`" if "continues" in training else "")
        + f", on {training['hardware']}, Python {training['python']}, torch {training['torch']}; "
        "WEIGHTS is the run before. `make train-emoji` trains from nothing, on a GPU with a longer plan.",
        "",
        "| stage | steps x batch | peak learning rate | seconds |",
        "|---|---|---|---|",
    ]
    phase: dict[str, Any] | None = training
    while phase:
        for stage, seconds in phase["seconds"].items():
            if stage in phase["plan"]:
                plan = phase["plan"][stage]
                detail = (
                    f"{plan['steps']} x {plan['batch']} | {plan['lr']}"
                    if isinstance(plan, dict)
                    else f"{plan} | "
                )
                again = " (continued)" if "continues" in phase else ""
                lines.append(f"| {stage}{again} | {detail} | {seconds} |")
        phase = phase.get("continues")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every gate is met, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.emoji.validate", description=__doc__)
    parser.add_argument("--per-cell", type=int, default=21, help="images per cell")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--renders", type=int, default=2000, help="unseen renders for the judge and emoji-clip"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args(argv)
    from erase_sd.cli.common import quiet_libraries
    from erase_sd.pipelines.loading import load_pipeline

    quiet_libraries()
    result: dict[str, Any] = {**check_judge(args.renders), **check_clip(args.renders)}
    pipe = load_pipeline(models.EMOJI_SD)
    args.out.mkdir(exist_ok=True)
    sample_sheet(pipe).save(args.out / "emoji-sd.png")
    result |= check_generator(pipe, args.per_cell, args.seeds)
    training = json.loads((models.WEIGHTS / "training.json").read_text())
    (args.out / "emoji-sd.md").write_text(markdown(result, training, args.per_cell, args.seeds))
    (args.out / "emoji-sd.json").write_text(json.dumps(result, indent=1))
    for key, (text, bar) in GATES.items():
        print(
            f"{'ok    ' if result[key] >= bar else 'MISSED'} {result[key]:6.1%} (at least {bar:.0%})  {text}"
        )
    return 0 if all(result[k] >= bar for k, (_, bar) in GATES.items()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
