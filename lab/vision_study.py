"""`python -m lab.vision_study`: the papers' tables for classifiers, as docs/measured/vision.md."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lab.page import MEASURED, fill, write_page
from lab.vision_parts import Study
from lab.vision_presets import PRESETS, TUNED_ON, TUNED_ON_CIFAR
from lab.vision_sections import SECTIONS

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
        p.add_argument("--shadows", type=int, default=50, help="models of each kind"),
        p.add_argument("--skip", action="append", default=[], choices=SECTIONS, help="a part"),
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
    )
    args.work.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, make in SECTIONS.items():
        start = time.perf_counter()
        left_out = f"Left out of this run (`--skip {name}`)."
        parts[name] = left_out if name in args.skip else make(study)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    presets = []
    for (method, data), options in PRESETS.items():
        listed = ", ".join(f"{k} = {v}" for k, v in options.items())
        presets.append(f"- {method} on {data}: {listed}")
    told = {"presets": "\n".join(presets), "list": study.list(), "knows": study.knows}
    told |= {"tuned": str(TUNED_ON), "tuned_cifar": ", ".join(map(str, TUNED_ON_CIFAR))}
    told |= {"images": f"{study.images:,}", "tests": f"{min(10_000, study.images // 2):,}"}
    text = fill("vision", command, **told, **parts)
    path = write_page(args.out, "vision", text, data=study.numbers)
    for name, picture in study.pictures.items():
        (args.out / f"{name}.png").write_bytes(picture)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
