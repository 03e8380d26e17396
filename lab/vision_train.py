"""`python -m lab.vision_train`: the original of our tables and Retrain, by one recipe, resumable.

Each training keeps its state after every epoch under a name that the tables look for; started
again, the command goes on where it was cut off, and prints what is done already.

`python -m lab.vision_train --model resnet20 --data build/data/cifar10.npz --forget class:0`
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erase_sd.vision import Data, Recipe, load_data, make_task, measure, unlearn
from erase_sd.vision.layers import in_order
from erase_sd.vision.models import trained
from erase_sd.vision.resume import spent
from erase_sd.vision.samples import Samples
from erase_sd.vision.task import Task
from erase_sd.vision.train import Loop, accuracy, laid_out
from lab.vision_cases import Setting
from lab.vision_presets import preset_of


def recipe_of(network: str, data: Data, **changes: Any) -> Recipe:
    """The recipe of the original and of Retrain alike: the preset, and what is changed of it."""
    return Recipe(**(preset_of("retrain", f"{data.name} {network}") | changes))


def folder(work: Path, network: str, data: Data) -> Path:
    """Where the trainings of a network on so many samples are kept."""
    found = work / f"{network}-{data.name}-{len(data.train_y)}"
    found.mkdir(parents=True, exist_ok=True)
    return found


def original(
    network: str, data: Data, recipe: Recipe, kept: Path, seed: int = 0
) -> tuple[nn.Module, float]:
    """The network trained on everything, and the seconds that took."""
    path = kept / f"original-{seed}.state"
    loop = Loop(resume=path, desc="original")
    return trained(network, data, recipe, seed=seed, loop=loop), spent(path)


def retrained(
    model: nn.Module, task: Task, recipe: Recipe, kept: Path, seed: int = 0
) -> tuple[nn.Module, float]:
    """The network trained anew on what a task retains, and the seconds that took."""
    path = kept / f"retrain-{task.name}-{seed}.state"
    options = {k: v for k, v in vars(recipe).items() if k != "resume"}
    new = unlearn(model, task, "retrain", seed=seed + 100, resume=str(path), **options).model
    return new, spent(path)


def own(work: Path, data: Data, share: tuple[float, float], network: str = "resnet20") -> Setting:
    """Where tables of a network that was trained here are made: its original and its Retrains.

    Methods and metrics see a share of the training and of the test samples.
    """
    recipe = recipe_of(network, data)
    kept = folder(work, network, data)

    @cache
    def made(seed: int) -> nn.Module:
        model, _ = original(network, data, recipe, kept, seed)
        return laid_out(model, torch.channels_last)

    def anew(forget: str, seed: int) -> tuple[nn.Module, float]:
        task = make_task(data, forget, seed=seed)
        return retrained(made(seed), task, recipe, kept, seed)

    name, preset = f"{network} own {data.name}", f"{data.name} {network}"
    setting = Setting(data, made, preset, True, name, recipe.told(), anew=anew, share=share)
    names = tuple(y.name for y in in_order(made(0), data.train_x))
    return replace(setting, precision=recipe.precision, layers=names)


def _typed(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(argv: list[str] | None = None) -> int:
    """Train, or go on training, and print what each network knows."""
    p = argparse.ArgumentParser(prog="python -m lab.vision_train", description=__doc__)
    p.add_argument("--model", default="resnet20", help="an architecture")
    p.add_argument("--data", default="build/data/cifar10.npz")
    p.add_argument("--forget", action="append", default=[], help="Retrain without it; repeatable")
    p.add_argument(
        "--option",
        action="append",
        default=[],
        type=_typed,
        metavar="NAME=VALUE",
        help="of the recipe: epochs, lr, batch, optimizer, schedule, augment, precision, …",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--work", type=Path, default=Path("build/vision"))
    args = p.parse_args(argv)
    data = load_data(args.data)
    recipe = recipe_of(args.model, data, **dict(args.option))
    kept = folder(args.work, args.model, data)
    print(json.dumps({"recipe": recipe.told(), "kept": str(kept)}), flush=True)
    model, seconds = original(args.model, data, recipe, kept, args.seed)
    seen, test = Samples(data.train_x, data.train_y), Samples(data.test_x, data.test_y)
    told: dict[str, Any] = {"train": accuracy(model, seen), "test": accuracy(model, test)}
    print(json.dumps({"original": told, "seconds": round(seconds)}), flush=True)
    for forget in args.forget:
        task = make_task(data, forget, seed=args.seed)
        new, seconds = retrained(model, task, recipe, kept, args.seed)
        told = measure(new, task, seed=args.seed)
        print(json.dumps({forget: told, "seconds": round(seconds)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
