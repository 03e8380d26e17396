"""The parts of docs/measured/vision.md: digits, CIFAR-10, PGU's set-ups, emoji-clip."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from erase_sd.vision import METHODS, load_data, load_model
from erase_sd.vision.embedded import scenes
from erase_sd.vision.layers import in_order
from erase_sd.vision.models import trained
from lab.vision_cases import Setting
from lab.vision_cifar import cifar
from lab.vision_own import frontier, layers, own_network
from lab.vision_parts import PUBLISHED, Study
from lab.vision_pgu import TABLES, World, table
from lab.vision_presets import TUNED_ON
from lab.vision_report import markdown, plot


def digits(study: Study) -> str:
    """Every method on digits, and the tables of one or two methods."""
    data = load_data("digits")
    parts = []
    everything = [m for m in METHODS if m not in ("retrain", "unlink-below", "depoison")]
    for name in study.networks:
        original = cache(lambda seed, name=name: trained(name, data, seed=seed))
        names = tuple(y.name for y in in_order(original(0), data.train_x))
        setting = Setting(data, original, f"digits {name}", True, f"{name} digits", layers=names)
        some = (
            study.classes if name == "mlp" else [c for c in study.classes if c not in TUNED_ON][:3]
        )
        title = f"Digits, {name}, one class after another"
        told = study.table(
            title, "class-wise", setting, methods=everything, classes=some, seeds=study.seeds
        )
        study.pictures[f"vision-{name}"] = plot(study.numbers[title], f"digits, {name}")
        parts += [told, f"![forgotten and kept](vision-{name}.png)\n", study.classes_of(title)]
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
                    published=True,
                )
            )
            parts.append(
                study.table("Digits, mlp, layers", "layers", setting, published=True, **few)
            )
            parts.append(study.table("Digits, mlp, GF's α", "alphas", setting, **few))
    return "\n".join(parts)


def clip(study: Study) -> str:
    """The embedded CLIP, zero-shot."""
    data = scenes(16, 8)
    model = load_model("emoji-clip", data.classes)
    setting = Setting(data, lambda seed: model, "emoji", False, "emoji-clip", "16, 8")
    title = "emoji-clip, zero-shot"
    told = study.table(title, "clip", setting, classes=[0, 28, 56], published=True)
    return told + "\n" + study.classes_of(title)


def pgu(study: Study) -> str:
    """PGU's tables and figures."""
    data = load_data("digits")
    world = World(data, "mlp")
    parts = []
    for name, about in TABLES.items():
        kept = study.work / f"{name}-mlp-{min(3, study.seeds)}-{study.shadows}.json"
        drawn = kept.with_suffix(".png")
        if not kept.exists():
            start = time.process_time()
            rows, picture = table(name, world, min(3, study.seeds), study.shadows)
            if picture is not None:
                drawn.write_bytes(picture)
            told = {"rows": rows, "cost": time.process_time() - start}
            kept.write_text(json.dumps(told), encoding="utf-8")
        made = json.loads(kept.read_text(encoding="utf-8"))
        title = f"Digits, mlp, {about}"
        study.note(title, name, made["rows"], made["cost"])
        parts.append(f"### {title}\n\n{markdown(made['rows'], PUBLISHED.get(name))}\n")
        if drawn.exists():
            study.pictures["vision-pgu"] = drawn.read_bytes()
            parts.append(
                f"{study.shadows} + {study.shadows} shadow models, {world.recipe.epochs} epochs "
                "each.\n\n![entropy, attack, confusion](vision-pgu.png)\n"
            )
    return "\n".join(parts)


SECTIONS: dict[str, Callable[[Study], str]] = {
    "cifar": cifar,
    "own": own_network,
    "layers": layers,
    "frontier": frontier,
    "digits": digits,
    "pgu": pgu,
    "clip": clip,
}
