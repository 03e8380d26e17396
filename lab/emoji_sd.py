"""Measure emoji-sd: the generator by its judge, the judges and emoji-clip by renders."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from erase_sd.cli.common import quiet_libraries
from erase_sd.emoji.models import EMOJI_SD
from erase_sd.emoji.world import available_objects, load_world, with_article
from erase_sd.eval.sheet import image_grid
from erase_sd.models.files import atomic_path
from erase_sd.pipelines.loading import load_pipeline
from erase_sd.pipelines.sampling import generate
from lab.emoji_checks import check_autoencoder, check_clip, check_generator, check_judge
from lab.emoji_page import commands, curve, second_opinion, training_table
from lab.page import MEASURED, Goal, fill, goal_table, plain, tell, write_page
from lab.second_judge import load_second_judge

STEPS, GUIDANCE = 20, 3.0
GOALS = {
    "objects": ("object named in the prompt is the judge's top answer, mean over objects", 0.98),
    "worst object": ("the same, worst object", 0.85),
    "pairs": ("both objects of a two-object prompt found", 0.85),
    "artists": ("artist named in the prompt recognised, mean over artists", 0.92),
    "worst artist": ("the same, worst artist", 0.85),
    "backgrounds": ("background colour right", 0.99),
    "judges agree": ("the second judge names the same object in single-object images", 0.95),
    "judge": ("judge's top object on unseen renders", 0.99),
    "clip": ("emoji-clip zero-shot on unseen renders", 0.95),
}


def sample_sheet(pipe: Any, seed: int = 7) -> Image.Image:
    """Every object once, artists and backgrounds in turn, in the world's order; nine a row."""
    world, drawn = load_world(), available_objects()
    grounds, artists = list(world.backgrounds), len(world.artists)
    prompts = []
    for i, name in enumerate(world.names):
        turn = [(i + k) % artists for k in range(artists)]
        artist = world.artists[next(a for a in turn if i in drawn[a])]
        ground = grounds[i % len(grounds)]
        prompts.append(f"{with_article(name)} by {artist} on a {ground} background")
    seeds = [seed + i for i in range(len(prompts))]
    images = generate(pipe, prompts, seeds, steps=STEPS, guidance=GUIDANCE, batch=32)
    return image_grid(images, 9, cell=128)


# -- the page
# ---------------------------------------------------------------------------------------


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """What was aimed at, and what was reached."""
    told = {"worst artist": min(result["per artist"].values())} | dict(result)
    told["judges agree"] = result.get("second judge", {}).get("agreement", math.nan)
    return [Goal.at_least(what, bar, told[k], "{:.1%}") for k, (what, bar) in GOALS.items()]


def validation_page(
    result: Mapping[str, Any], training: Mapping[str, Any], per_cell: int, seeds: int
) -> str:
    """The page's text."""
    chain = commands(training)
    return fill(
        "emoji-sd",
        f"python -m lab.emoji_sd --per-cell {per_cell} --seeds {seeds}",
        steps=STEPS,
        guidance=GUIDANCE,
        per_cell=per_cell,
        seeds=seeds,
        goals=goal_table(goals(result)),
        by_seed=", ".join(f"{v:.1%}" for v in result["objects by seed"]),
        judge_artist=result["judge artist"],
        judge_background=result["judge background"],
        judge_pairs=result["judge pairs"],
        retrieval=result["clip retrieval of 256"],
        second=second_opinion(result),
        curve=curve(result, training),
        decibels=result["autoencoder dB"],
        returned=result["autoencoder judge"],
        names=", ".join(load_world().names),
        weakest=plain(dict(list(result["per object"].items())[:10])),
        artists=plain(result["per artist"]),
        backgrounds=plain(result["per background"]),
        first_command=chain[0],
        then="".join(f", then `{c}`" for c in chain[1:]),
        hardware=training["hardware"],
        python=training["python"],
        torch=training["torch"],
        training=training_table(training),
    )


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every goal is met, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m lab.emoji_sd", description=__doc__)
    parser.add_argument("--per-cell", type=int, default=21, help="images per cell")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--renders", type=int, default=2000, help="unseen renders for the judges and emoji-clip"
    )
    parser.add_argument("--model", type=Path, default=EMOJI_SD, help="the generator")
    parser.add_argument("--out", type=Path, default=MEASURED)
    args = parser.parse_args(argv)
    quiet_libraries()
    pipe = load_pipeline(args.model)

    def draw(prompts: Sequence[str], series: int) -> list[Image.Image]:
        numbers = [100_000 * series + i for i in range(len(prompts))]
        label = f"series {series}"
        return generate(
            pipe, prompts, numbers, steps=STEPS, guidance=GUIDANCE, batch=32, progress=label
        )

    result: dict[str, Any] = {**check_judge(args.renders), **check_clip(args.renders)}
    second = load_second_judge()
    if second is not None:
        result["second judge on renders"] = check_judge(args.renders, second)
    coded = check_autoencoder(pipe, args.renders)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out / "emoji-sd-autoencoder.png", force=True) as draft:
        coded.pop("sheet").save(draft, format="PNG")
    result |= coded
    sheet = sample_sheet(pipe)
    result |= check_generator(draw, args.per_cell, args.seeds)
    training = json.loads((args.model.parent / "training.json").read_text())
    text = validation_page(result, training, args.per_cell, args.seeds)
    print(f"wrote {write_page(args.out, 'emoji-sd', text, data=result, picture=sheet)}")
    return tell(goals(result))


if __name__ == "__main__":
    raise SystemExit(main())
