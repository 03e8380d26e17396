"""The parts of docs/measured/vision.md: digits, CIFAR-10, PGU's set-ups, emoji-clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from erase_sd.vision import METHODS, load_data, load_model
from erase_sd.vision.embedded import scenes
from erase_sd.vision.models import trained
from lab.vision_cases import Setting
from lab.vision_cifar import cifar, frontier
from lab.vision_parts import PUBLISHED, Study
from lab.vision_pgu import World, figures, tables
from lab.vision_presets import TUNED_ON
from lab.vision_report import markdown, plot


def digits(study: Study) -> str:
    """Every method on digits, and the tables of one or two methods."""
    data = load_data("digits")
    parts = []
    everything = [m for m in METHODS if m not in ("retrain", "unlink-below", "depoison")]
    for name in study.networks:
        original = cache(lambda seed, name=name: trained(name, data, seed=seed))
        setting = Setting(data, original, f"digits {name}", True, f"{name} digits")
        some = (
            study.classes if name == "mlp" else [c for c in study.classes if c not in TUNED_ON][:3]
        )
        title = f"Digits, {name}, one class after another"
        told = study.table(
            title, "class-wise", setting, methods=everything, classes=some, seeds=study.seeds
        )
        study.pictures[f"vision-{name}"] = plot(study.numbers[title], f"digits, {name}")
        parts += [told, f"![forgotten and kept](vision-{name}.png)\n"]
        parts.append(study.goals(title, "two-sided"))
        if name == "mlp":
            few: dict[str, Any] = {"classes": some[:3], "seeds": 1}
            brief = ("unlink", "rayleigh", "gf", "pgu", "ssd", "unlink-below", "ntk", "ft", "rl")
            parts.append(
                study.table(
                    "Digits, mlp, a tenth of the samples",
                    "random",
                    setting,
                    methods=brief,
                    seeds=3,
                    classes=few["classes"],
                    published="random",
                )
            )
            parts.append(
                study.table("Digits, mlp, layers", "layers", setting, published="layers", **few)
            )
            parts.append(study.table("Digits, mlp, GF's α", "alphas", setting, **few))
    return "\n".join(parts)


def clip(study: Study) -> str:
    """The embedded CLIP, zero-shot."""
    data = scenes(16, 8)
    model = load_model("emoji-clip", data.classes)
    setting = Setting(data, lambda seed: model, "emoji", False, "emoji-clip", "16, 8")
    return study.table(
        "emoji-clip, zero-shot", "clip", setting, classes=[0, 28, 56], published="clip"
    )


def pgu(study: Study) -> str:
    """PGU's tables and figures."""
    world = World(load_data("digits"), "mlp")
    parts = []
    for title, make in tables(world, min(3, study.seeds)).items():
        path = study.work / f"pgu-{title.split(':')[0].replace(' ', '-')}.json"
        if not path.exists():
            path.write_text(json.dumps(make()), encoding="utf-8")
        rows = json.loads(path.read_text(encoding="utf-8"))
        study.numbers[title] = rows
        beside = {f"*published: {n}*": v for n, v in PUBLISHED.get(title.split(":")[0], {}).items()}
        parts.append(f"### PGU's {title}\n\n{markdown(rows, beside)}\n")
    drawn, kept = (study.work / f"pgu-figures-{study.shadows}.{end}" for end in ("png", "json"))
    if not kept.exists():
        picture, rows = figures(world, "class:0#14", study.shadows)
        drawn.write_bytes(picture)
        kept.write_text(json.dumps(rows), encoding="utf-8")
    picture, rows = drawn.read_bytes(), json.loads(kept.read_text(encoding="utf-8"))
    study.pictures["vision-pgu"] = picture
    study.numbers["figures"] = rows
    told = f"{study.shadows} + {study.shadows} shadow models, {world.recipe.epochs} epochs each."
    parts.append(
        f"### PGU's figures\n\n{told}\n\n{markdown(rows)}\n\n![entropy, attack, "
        f"confusion](vision-pgu.png)\n"
    )
    return "\n".join(parts)


SECTIONS: dict[str, Callable[[Study], str]] = {
    "cifar": cifar,
    "digits": digits,
    "pgu": pgu,
    "frontier": frontier,
    "clip": clip,
}
