"""`python -m erase_sd.bench.vision`: vision methods on digits, real CIFAR-10 and emoji-clip; writes docs/vision.md."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from erase_sd.vision import METHODS, PRESETS, load_data, make_task, unlearn
from erase_sd.vision.closed_form import edit_layers
from erase_sd.vision.data import Data, emoji
from erase_sd.vision.layers import collect, layers
from erase_sd.vision.metrics import average_gap, log_entropy, measure, roc_auc, shadow_auc
from erase_sd.vision.models import emoji_clip, load_model, trained
from erase_sd.vision.tables import Setting, headed, markdown, plot, run
from erase_sd.vision.task import Samples

LAST = ("rayleigh", "unlink", "affine", "mask", "eu-k")  # methods that touch the last layer alone
CHEAP = (
    "gf",
    "pgu",
    "ga",
    "iu",
    "be",
    "bs",
    "ssd",
    "jit",
    "ntk",
    "first-order",
)  # they read few or no retained samples
TRAINED = ("ft", "rl", "l1", "salun", "scrub")

INTRODUCTION = """# Unlearning in classifiers, measured

Made by `make bench-vision` (`python -m erase_sd.bench.vision`{flags}) on CPU. UA: forgotten samples no
longer recognised; RA, TA: retained and test samples (without forgotten classes) recognised; MIA: forgotten samples
that an attack takes for unseen ones; all in per cent. Avg.Gap: mean distance to retraining over these four. relearn k:
recall of the forgotten class on test samples after a linear classifier is fitted anew on the penultimate features with
k labelled forget samples: it tells hidden from unlearned, which the others cannot. `mask`, one logit at minus infinity,
is the trivial baseline. Means ± standard deviations over classes and seeds; seconds
are of the method alone, on one or two threads beside other work: orders of magnitude.
"""


def main(argv: list[str] | None = None) -> int:
    """Run or resume all parts and write the page."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench.vision", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/vision-bench"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="cifar10.npz and its networks")
    parser.add_argument("--small", action="store_true", help="two classes, one seed: a trial")
    parser.add_argument("--tune", action="store_true", help="find the presets for digits, print them, and stop")
    args = parser.parse_args(argv)
    if args.tune:
        tune()
        return 0
    classes, seeds = ([0, 1], 1) if args.small else (list(range(10)), 3)
    lines = [INTRODUCTION.format(flags=" --small" if args.small else "")]
    numbers: dict[str, Any] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    lines += _digits(args, classes, seeds, numbers)
    lines += _cifar(args, classes, numbers)
    lines += _clip(args, numbers)
    lines += _pgu(args, seeds, numbers)
    lines += [
        "## Presets",
        "",
        "Options that differ from a method's own defaults (`erase-concept vision methods`):",
        "",
    ]
    lines += [f"- {m} on {d}: {', '.join(f'{k} = {v}' for k, v in o.items())}" for (m, d), o in PRESETS.items()]
    (args.out / "vision.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / "vision.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print(f"wrote {args.out / 'vision.md'}")
    return 0


GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ga": {"lr": (1e-3, 3e-3, 1e-2, 3e-2, 0.1), "epochs": (5, 10, 20)},
    "rl": {"lr": (0.01, 0.03, 0.1)},
    "salun": {"lr": (0.01, 0.03, 0.1)},
    "ft": {"lr": (0.01, 0.03, 0.1), "epochs": (10, 20)},
    "l1": {"lr": (0.01, 0.03, 0.1), "gamma": (5e-5, 5e-4, 2e-3, 5e-3, 1e-2)},
    "iu": {"alpha": (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)},
    "be": {"lr": (1e-3, 3e-3, 1e-2), "epochs": (1, 2, 5, 10)},
    "bs": {"lr": (3e-3, 0.01, 0.03), "epochs": (5, 10, 20), "bound": (0.1, 0.3)},
    "ssd": {"alpha": (2.0, 5.0, 10.0, 20.0, 50.0), "dampening": (0.1, 1.0)},
    "jit": {"lr": (1e-3, 3e-3, 1e-2), "epochs": (1, 3, 5)},
    "scrub": {"lr": (5e-4, 5e-3, 2e-2, 5e-2, 0.1), "epochs": (3, 6)},
    "ntk": {"ridge": (1e-8, 1e-6, 1e-4, 1e-2, 1.0)},
    "first-order": {"tau": (3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)},
    "second-order": {"tau": (10.0, 100.0, 1000.0, 1e4)},
    "eu-k": {"k": (1, 2), "epochs": (10, 20)},
    "pgu": {"gamma": (0.8, 0.9, 0.95, 0.99)},
}


TUNED_ON = (0, 4, 7)


def tune() -> dict[tuple[str, str], dict[str, Any]]:
    """Each rival's best setting on digits, by its mean gap to retraining on three classes of one seed."""
    data, found = load_data("digits"), {}
    tasks = [make_task(data, f"class:{c}") for c in TUNED_ON]
    for name in ("mlp", "cnn"):
        model = trained(name, data)
        references = [measure(unlearn(model, t, "retrain", seed=100, preset="digits").model, t) for t in tasks]
        for method, grid in tqdm(GRIDS.items(), desc=name):
            gaps = []
            for values in itertools.product(*grid.values()):
                options = dict(zip(grid, values, strict=True))
                try:
                    found_gaps = [
                        average_gap(measure(unlearn(model, t, method, **options).model, t), r)
                        for t, r in zip(tasks, references, strict=True)
                    ]
                except ValueError:  # diverged
                    continue
                gaps.append((float(np.mean(found_gaps)), options))
            gap, found[method, f"digits {name}"] = min(gaps, key=lambda g: g[0])
            tqdm.write(f'    ("{method}", "digits {name}"): {found[method, f"digits {name}"]},  # {gap:.2f}')
    return found


def _trained(name: str, data: Data, seed: int) -> nn.Module:
    """The original of a seed."""
    return trained(name, data, seed=seed)


def _same(model: nn.Module, seed: int) -> nn.Module:
    """One pretrained network for every seed."""
    return model


def _digits(args: Any, classes: list[int], seeds: int, numbers: dict[str, Any]) -> list[str]:
    lines = ["## Digits, one class after another", "",
             f"scikit-learn's digits, 40 epochs; {len(classes)} classes × {seeds} seeds, all methods.", ""]  # fmt: skip
    data = load_data("digits")
    for name in ("mlp", "cnn"):
        original = cache(partial(_trained, name, data))
        setting = Setting(data, original, f"digits {name}", True, f"{name} digits")
        methods = [m for m in METHODS if m not in ("retrain", "unlink-below")]
        rows = run("class-wise", setting, args.work, methods=methods, classes=classes, seeds=seeds)
        numbers[f"digits {name}"] = rows
        plot(rows, args.out / f"vision-{name}.png", f"digits, {name}")
        lines += [f"### {name}", "", *markdown(rows), "", f"![forgotten and kept](vision-{name}.png)", ""]
    return lines


def _cifar(args: Any, classes: list[int], numbers: dict[str, Any]) -> list[str]:
    path = args.shared / "cifar10.npz"
    head = ["## CIFAR-10, pretrained networks, one class after another", ""]
    if not path.is_file():
        return [*head, f"Not measured: {path} is absent (10,000 test and 20,000 training images of CIFAR-10).", ""]
    data = load_data(str(path))
    lines = [*head, "The public weights of akamaster's networks; features and RA on 20,000 training images, TA on the",
             "10,000 test images. Ten classes. No retraining from nothing, hence no gap.", ""]  # fmt: skip
    for name in ("resnet20", "resnet56"):
        model = load_model(f"{name}:{args.shared / f'cifar10_{name}.safetensors'}", 10).eval()
        inner, features = headed(model, data)
        setting = Setting(features, partial(_same, inner), "cifar10", False, f"{name} last layer")
        rows = run("class-wise", setting, args.work, methods=LAST, classes=classes, seeds=1)
        numbers[f"cifar10 {name} last layer"] = rows
        lines += [
            f"### {name}, methods that edit the last layer",
            "",
            *markdown(rows),
            "",
            _edit_time(inner, features),
            "",
        ]
        methods, count = (CHEAP + TRAINED, 4_000) if name == "resnet20" else (("gf", "ga", "ssd"), 2_000)
        few = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(0))[:count]
        part = Data("cifar10", data.train_x[few], data.train_y[few], data.test_x[::5], data.test_y[::5], data.classes)
        setting = Setting(part, partial(_same, model), "cifar10", False, f"{name} whole")
        some = classes[:3] if name == "resnet20" else classes[:2]
        rows = run("class-wise", setting, args.work, methods=methods, classes=some, seeds=1)
        numbers[f"cifar10 {name} whole network"] = rows
        lines += [f"### {name}, methods that edit the whole network", "",
                  f"On {count:,} training and 2,000 test images and {len(some)} classes; methods that train on "
                  "retained samples do so for two epochs; no option was tuned here.",
                  "", *markdown(rows), ""]  # fmt: skip
    return lines


def _edit_time(head: nn.Module, data: Data) -> str:
    """Time of the default's edit, given features and the cached retained moment."""
    from erase_sd.algebra.methods.rayleigh import rayleigh

    task = make_task(data, "class:3")
    kept = collect(head, layers(head), task.retain.x)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        edit_layers(head, task.forget, kept, lambda p: rayleigh(p, rank=1, epsilon=0.1, protect_null=False))
        times.append(1e3 * (time.perf_counter() - start))
    told = "The default's edit, from the forget samples' features and the cached moment of the retained"
    return f"{told}: {np.median(times):.1f} ms (median of 20)."


def _clip(args: Any, numbers: dict[str, Any]) -> list[str]:
    data = emoji(16, 8)
    model = emoji_clip()
    lines = [
        "## emoji-clip, zero-shot",
        "",
        "One of five objects forgotten in the image tower; text embeddings of 69 class names are the classifier "
        "and stay. 16 training and 8 test scenes an object; the projection edited (last) or all layers (two objects). "
        "The default's rank and ridge were chosen on dog, pizza and horse.",
        "",
    ]
    setting = Setting(data, partial(_same, model), "emoji", False, "emoji-clip", "16, 8")
    classes = list(range(0, 69, 14)) if not args.small else [0]
    rows = run("clip", setting, args.work, methods=["rayleigh", "unlink", "gf", "mask"], classes=classes, seeds=1)
    deep = run("layers", setting, args.work, methods=["rayleigh", "unlink"], classes=classes[:2], seeds=1)
    rows += [r for r in deep if r["row"] not in ("original", "rayleigh, last", "unlink, last")]
    numbers["emoji-clip"] = rows
    return [*lines, *markdown(rows), ""]


def _pgu(args: Any, seeds: int, numbers: dict[str, Any]) -> list[str]:
    data = load_data("digits")
    original = cache(partial(_trained, "mlp", data))
    setting = Setting(data, original, "digits mlp", True, "mlp digits")
    lines = ["## PGU", ""]
    for table, told in (
        ("incremental", "Four classes one after another, from one cache; the method reads no retained sample."),
        ("depoison", "A twentieth of the training labels is wrong; a share of these samples is known and unlearned."),
    ):
        rows = run(table, setting, args.work, methods=[], classes=list(range(4)), seeds=seeds)
        numbers[table] = rows
        lines += [f"### {table}", "", told, "", *markdown(rows), ""]
    return lines + _random(original, data, seeds, numbers)


def _random(original: Any, data: Data, seeds: int, numbers: dict[str, Any]) -> list[str]:
    """Errors, entropies and a shadow-model attack for PGU on a tenth of the samples, beside retraining."""
    entries: dict[str, list[list[float]]] = {"original": [], "PGU": [], "retrain": []}
    for seed in range(seeds):
        task = make_task(data, "random:0.1", seed=seed)
        models = {
            "original": original(seed),
            "PGU": unlearn(original(seed), task, "pgu", seed=seed, preset="digits").model,
            "retrain": unlearn(original(seed), task, "retrain", seed=seed + 100, preset="digits").model,
        }
        seen = [original(s) for s in range(seeds) if s != seed] or [original(seed + 1)]
        unseen = [
            unlearn(original(seed), task, "retrain", seed=200 + s, preset="digits").model for s in range(len(seen))
        ]
        fresh = log_entropy(models["original"], task.test)
        for name, model in models.items():
            errors = [100 - _accuracy(model, p) for p in (task.forget, task.retain, task.test)]
            entropy = log_entropy(model, task.forget)
            labels = np.r_[np.ones(len(entropy)), np.zeros(len(fresh))]
            auc = roc_auc(-np.r_[entropy, log_entropy(model, task.test)], labels)
            score = shadow_auc(seen, unseen, model, task.forget)
            entries[name].append([*errors, float(entropy.mean()), auc, score])
    columns = (
        "D_f error",
        "D_r error",
        "D_test error",
        "mean log-entropy on D_f",
        "MIA AUC by entropy",
        "shadow score",
    )
    lines = ["### A tenth of the samples", "",
             "MIA AUC: does low entropy tell forgotten samples from test samples (0.5: no)? Shadow score: what an "
             "attack trained on models with and without these samples gives the model (0: never saw them).", "",
             "| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]  # fmt: skip
    for name, rows in entries.items():
        mean = np.mean(rows, 0)
        numbers[f"random {name}"] = dict(zip(columns, map(float, mean), strict=True))
        lines.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in mean) + " |")
    return [*lines, ""]


def _accuracy(model: nn.Module, samples: Samples) -> float:
    from erase_sd.vision.train import accuracy

    return accuracy(model, samples)


if __name__ == "__main__":
    raise SystemExit(main())
