"""What is asked of emoji-sd, emoji-clip and the judges, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from erase_sd.emoji.clip import embed_images, embed_texts, load_clip
from erase_sd.emoji.judge import Verdicts, judge
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import Scene, caption, sample_scene
from erase_sd.emoji.world import available_objects, load_world, with_article
from erase_sd.eval.sheet import image_grid
from erase_sd.pipelines.denoising import latents_of
from lab.second_judge import load_second_judge

Draw = Callable[[Sequence[str], int], list[Image.Image]]  # prompts, and the number of a series
_AT_ONCE = 64  # pictures through the autoencoder
Labelled = list[tuple[str, str]]  # prompts, and what a judge should name


def share(hits: Sequence[bool]) -> float:
    """Share of what is true."""
    return float(np.mean(hits))


def agree(told: Sequence[str], seen: Sequence[str]) -> float:
    """Share of equal names."""
    return share([a == b for a, b in zip(told, seen, strict=True)])


# -- renders
# ----------------------------------------------------------------------------------------


def unseen(count: int, seed: int, *, pairs: float = 0) -> tuple[list[Scene], list[Image.Image]]:
    """Scenes from a seed that training never used, and their pictures."""
    rng = np.random.default_rng((987, seed))
    scenes = [sample_scene(rng, pairs=pairs) for _ in range(count)]
    return scenes, [Image.fromarray(render(s)) for s in scenes]


def check_judge(count: int, network: nn.Module | None = None) -> dict[str, float]:
    """Accuracy of a judge on unseen renders, and on two-object ones.

    Args:
        count: Renders of each kind.
        network: The judge; default: the shipped one.
    """
    world = load_world()
    scenes, pictures = unseen(count, 0)
    seen = judge(pictures, network=network)
    couples, pictures = unseen(count, 1, pairs=1)
    top = judge(pictures, network=network).objects.topk(2, dim=1).indices.tolist()
    return {
        "judge": agree([world.names[s.objects[0]] for s in scenes], seen.top),
        "judge artist": agree([world.artists[s.artist] for s in scenes], seen.artist),
        "judge background": agree([s.background for s in scenes], seen.background),
        "judge pairs": share([set(t) == set(s.objects) for t, s in zip(top, couples, strict=True)]),
    }


def check_clip(count: int) -> dict[str, float]:
    """Zero-shot accuracy of emoji-clip over the objects, and retrieval of full captions."""
    clip, tokenizer = load_clip()
    world = load_world()
    scenes, pictures = unseen(count, 2)
    images = embed_images(clip, np.stack([np.asarray(p) for p in pictures]))
    named = embed_texts(clip, tokenizer, [f"a photo of {with_article(n)}" for n in world.names])
    truth = torch.tensor([s.objects[0] for s in scenes])
    hit = (images @ named.T).argmax(1) == truth
    rng = np.random.default_rng(3)
    full = [caption(s, rng, attributes=1, family=0) for s in scenes[:256]]
    found = (images[:256] @ embed_texts(clip, tokenizer, full).T).argmax(1)
    right = found == torch.arange(len(full))
    return {"clip": float(hit.float().mean()), "clip retrieval of 256": float(right.float().mean())}


def reconstructed(pipe: Any, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures as the autoencoder returns them."""
    found: list[Image.Image] = []
    for start in range(0, len(pictures), _AT_ONCE):
        with torch.no_grad():
            latents = latents_of(pipe, pictures[start : start + _AT_ONCE])
            out = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        found += pipe.image_processor.postprocess(out, output_type="pil")
    return found


def check_autoencoder(pipe: Any, count: int) -> dict[str, Any]:
    """What the autoencoder alone costs, on unseen renders.

    Returns:
        Peak signal to noise in dB, mean over pictures; how often the judge names the right object
        in what comes back; and a sheet of originals, each above what came back of it.
    """
    scenes, pictures = unseen(count, 3)
    back = reconstructed(pipe, pictures)
    noise = [
        10 * float(np.log10(255**2 / np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))
        for a, b in zip(pictures, back, strict=True)
    ]
    right = agree([load_world().names[s.objects[0]] for s in scenes], judge(back).top)
    rows = [im for i in (0, 9) for im in (*pictures[i : i + 9], *back[i : i + 9])]
    numbers = {"autoencoder dB": float(np.mean(noise)), "autoencoder judge": right}
    return numbers | {"sheet": image_grid(rows, 9, cell=128)}


# -- the generator
# ------------------------------------------------------------------------------------


def check_objects(draw: Draw, per_seed: int, seeds: int) -> dict[str, Any]:
    """Draw every object; where there is a second judge, also how often the two agree."""
    names = [n for n in load_world().names for _ in range(per_seed)]
    phrases = ("a photo of {}", "a picture of {}", "an emoji of {}", "{}")
    prompts = [phrases[i % 4].format(with_article(n)) for i, n in enumerate(names)]
    second = load_second_judge()
    hits: list[list[bool]] = []
    votes: list[Verdicts] = []
    for seed in range(seeds):
        images = draw(prompts, seed)
        first = judge(images)
        hits.append([n == t for n, t in zip(names, first.top, strict=True)])
        votes.append(first)
        if second is not None:
            votes.append(judge(images, network=second))
    grid = np.array(hits, float).reshape(seeds, -1, per_seed)
    scores = dict(zip(load_world().names, grid.mean((0, 2)).tolist(), strict=True))
    result: dict[str, Any] = {
        "per object": dict(sorted(scores.items(), key=lambda item: item[1])),
        "objects": float(np.mean(list(scores.values()))),
        "worst object": min(scores.values()),
        "objects by seed": grid.mean((1, 2)).tolist(),
    }
    if second is not None:
        ours, theirs = ([t for v in votes[i::2] for t in v.top] for i in (0, 1))
        result["second judge"] = agreement(names * seeds, ours, theirs)
    return result


def agreement(told: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> dict[str, float]:
    """How often two judges name the same object.

    Args:
        told: What each picture should show.
        ours: What the first judge names.
        theirs: What the second judge names.

    >>> agreement(["cat", "dog"], ["cat", "fox"], ["cat", "dog"])
    {'agreement': 0.5, 'objects': 1.0, 'agreement where the first is right': 1.0}
    """
    right = [b == a for a, b, t in zip(ours, theirs, told, strict=True) if a == t]
    return {
        "agreement": agree(ours, theirs),
        "objects": agree(told, theirs),
        "agreement where the first is right": share(right) if right else float("nan"),
    }


def questions(per_seed: int, seed: int) -> tuple[Labelled, Labelled, list[tuple[int, int]]]:
    """What one seed asks about artists and backgrounds, and its couples of objects."""
    world = load_world()
    rng = np.random.default_rng((55, seed))
    names = [with_article(n) for n in world.names]
    drawn = [
        (a, int(rng.choice(available_objects()[i])))
        for i, a in enumerate(world.artists)
        for _ in range(2 * per_seed)
    ]
    put = [(b, int(rng.integers(len(names)))) for b in world.backgrounds for _ in range(per_seed)]
    couples = []
    for _ in range(16 * per_seed):
        one, two = rng.choice(len(names), 2, replace=False)
        couples.append((int(one), int(two)))
    artists = [(f"{names[o]} by {a}", a) for a, o in drawn]
    return artists, [(f"{names[o]} on a {b} background", b) for b, o in put], couples


def check_scenes(draw: Draw, per_seed: int, seeds: int) -> dict[str, Any]:
    """Draw objects by every artist, on every background, and two at once."""
    names = [with_article(n) for n in load_world().names]
    artists: dict[str, list[bool]] = {}
    grounds: dict[str, list[bool]] = {}
    pairs: list[bool] = []
    for seed in range(seeds):
        by, on, couples = questions(per_seed, seed)
        seen = judge(draw([p for p, _ in by], seed + 10)).artist
        for (_, want), label in zip(by, seen, strict=True):
            artists.setdefault(want, []).append(want == label)
        seen = judge(draw([p for p, _ in on], seed + 20)).background
        for (_, want), label in zip(on, seen, strict=True):
            grounds.setdefault(want, []).append(want == label)
        both = draw([f"{names[a]} and {names[b]}" for a, b in couples], seed + 30)
        top = judge(both).objects.topk(2, dim=1).indices.tolist()
        pairs += [set(c) == set(t) for c, t in zip(couples, top, strict=True)]
    result: dict[str, Any] = {"pairs": share(pairs)}
    for key, hits in (("artist", artists), ("background", grounds)):
        per = {k: share(v) for k, v in hits.items()}
        result |= {f"per {key}": per, f"{key}s": float(np.mean(list(per.values())))}
    return result


def check_generator(draw: Draw, per_cell: int, seeds: int) -> dict[str, Any]:
    """Everything about the generator: at least `per_cell` images a cell over `seeds` seeds."""
    per_seed = -(-per_cell // seeds)
    return check_objects(draw, per_seed, seeds) | check_scenes(draw, per_seed, seeds)
