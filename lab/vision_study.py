"""`python -m lab.vision_study`: the papers' tables for classifiers, as docs/measured/vision.md."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from erase_sd.vision import METHODS
from lab.page import MEASURED, fill, table, write_page
from lab.vision_parts import Study
from lab.vision_presets import PRESETS, TUNED_ON, TUNED_ON_CIFAR
from lab.vision_sections import SECTIONS

EVERY = [m for m in METHODS if m not in ("retrain", "unlink-below", "depoison")]
COMMAND = "python -m lab.vision_study"


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, str]:
    """What is asked for, and the command that asks for it."""
    p = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    p.add_argument("--work", type=Path, default=Path("build/vision"))
    p.add_argument("--out", type=Path, default=MEASURED)
    p.add_argument("--data", type=Path, default=Path("build/data"), help="of `make data-cifar10`")
    shown = [
        p.add_argument("--networks", default="mlp,cnn", help="of digits"),
        p.add_argument("--classes", default="0,1,2,3,4,5,6,7,8,9", help="of digits"),
        p.add_argument("--seeds", type=int, default=3, help="of digits"),
        p.add_argument(
            "--images",
            type=int,
            default=4_000,
            help="of CIFAR-10, where the public network is edited",
        ),
        p.add_argument("--cifar-classes", default="0,3,8", help="in the tables that take some"),
        p.add_argument("--no-retrain", action="store_true", help="train no ResNet-20 here"),
        p.add_argument("--random", action="store_true", help="Retrain without a random tenth, too"),
        p.add_argument(
            "--rivals", default="", help="methods beside the ResNet-20's Retrain (default: all)"
        ),
        p.add_argument("--shadows", type=int, default=50, help="models of each kind"),
        p.add_argument("--skip", action="append", default=[], choices=SECTIONS, help="a part"),
        p.add_argument(
            "--keep",
            action="append",
            default=[],
            choices=SECTIONS,
            help="a part as the page in --out has it, from an earlier run",
        ),
    ]
    args = p.parse_args(argv)
    words = [COMMAND]
    for option in shown:
        value = getattr(args, option.dest)
        if value == option.default:
            continue
        name = option.option_strings[0]
        for one in value if isinstance(value, list) else [value]:
            words += [name] if one is True else [name, str(one)]
    return args, " ".join(words)


def numbers(text: str) -> list[int]:
    """`0,3,8` as numbers.

    >>> numbers("0,3")
    [0, 3]
    """
    return [int(part) for part in text.split(",")]


def earlier(out: Path, name: str) -> dict[str, Any]:
    """A part of the page as an earlier run made it.

    Raises:
        ValueError: If there is none.
    """
    path = out / "vision.json"
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if name not in made:
        raise ValueError(f"{path} has no part {name} to keep; it has {', '.join(made) or 'none'}")
    part: dict[str, Any] = made[name]
    return part


def main(argv: list[str] | None = None) -> int:
    """Run or resume all parts and write the page."""
    args, command = arguments(argv)
    study = Study(
        work=args.work,
        data=args.data,
        classes=numbers(args.classes),
        seeds=args.seeds,
        cifar=numbers(args.cifar_classes),
        shadows=args.shadows,
        images=args.images,
        networks=args.networks.split(","),
        retrain=not args.no_retrain,
        random=args.random,
        rivals=args.rivals.split(",") if args.rivals else EVERY,
    )
    args.work.mkdir(parents=True, exist_ok=True)
    made = {name: earlier(args.out, name) for name in args.keep}
    for name, make in SECTIONS.items():
        start = time.perf_counter()
        if name not in args.keep and name not in args.skip:
            made[name] = study.part(make, command)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    parts = {n: f"Left out of this run (`--skip {n}`)." for n in SECTIONS}
    for name, part in made.items():
        older = f"*From an earlier run: `{part['command']}`.*\n\n" if name in args.keep else ""
        parts[name] = older + part["text"]
    made = {n: made[n] for n in SECTIONS if n in made}
    ran = [row for part in made.values() for row in part["ran"]]
    told = {"list": table(["table", "name", "runs", "failed", "minutes of one core"], ran)}
    presets = []
    for (method, data), options in PRESETS.items():
        listed = ", ".join(f"{k} = {v}" for k, v in options.items())
        presets.append(f"- {method} on {data}: {listed}")
    told |= {"presets": "\n".join(presets)}
    told |= {"tuned": str(TUNED_ON), "tuned_cifar": ", ".join(map(str, TUNED_ON_CIFAR))}
    told |= {"images": f"{study.images:,}", "tests": f"{min(10_000, study.images // 2):,}"}
    text = fill("vision", command, **told, **parts)
    path = write_page(args.out, "vision", text, data=made)
    for name, picture in study.pictures.items():
        (args.out / f"{name}.png").write_bytes(picture)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
