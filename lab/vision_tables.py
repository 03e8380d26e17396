"""The papers' tables for classifiers, by name: resumable, averaged over classes and seeds.

`python -m lab.vision_tables class-wise --model mlp --train --data digits --out build/tables`
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from erase_sd.models.files import file_hash
from erase_sd.vision import METHODS, Data, Recipe, load_data, load_model
from erase_sd.vision.layers import in_order
from erase_sd.vision.models import trained
from lab.page import MEASURED, write_page
from lab.vision_cases import TABLES, Setting
from lab.vision_parts import PUBLISHED
from lab.vision_pgu import TABLES as PGU
from lab.vision_pgu import World, table
from lab.vision_report import by_class, markdown, plot
from lab.vision_runs import run
from lab.vision_siblings import siblings

OF_THEIR_OWN = ("shots", "ranks", "external", "layers", "alphas", "frontier", "clip", "siblings")
ALL = TABLES | {"siblings": "accuracy of each finer noun of a class (Unlink T3)"} | PGU


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What is asked for."""
    told = "\n".join(f"  {n:<12}{t}" for n, t in ALL.items())
    p = argparse.ArgumentParser(
        prog="python -m lab.vision_tables",
        description=__doc__,
        epilog=f"tables (docs/evaluation.md says what each costs):\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("name", choices=ALL)
    p.add_argument("--model", required=True, help="as for `erase-concept vision unlearn`")
    p.add_argument(
        "--train", action="store_true", help="train a fresh network of that architecture first"
    )
    p.add_argument("--epochs", type=int, default=40, help="of --train")
    p.add_argument("--data", default="digits")
    p.add_argument("--outside", help="another data set of the same classes, for the table external")
    p.add_argument("--size", type=int)
    p.add_argument(
        "--method",
        action="append",
        default=[],
        choices=METHODS,
        help="of tables that compare; repeatable",
    )
    p.add_argument("--classes", default="", help="numbers, such as 0,3,5 (default: all)")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--shadows", type=int, default=50, help="models of each kind, for pgu-figures")
    p.add_argument("--no-retrain", action="store_true", help="no retrained reference, hence no gap")
    p.add_argument("--work", type=Path, default=Path("build/vision-tables"))
    p.add_argument("--out", type=Path, default=MEASURED / "vision-tables")
    args = p.parse_args(argv)
    if args.method and (args.name in OF_THEIR_OWN or args.name in PGU):
        p.error(f"the table {args.name} has methods of its own")
    if args.classes and (args.name in ("random", "siblings") or args.name in PGU):
        p.error(f"the table {args.name} chooses no classes")
    if args.outside and args.name != "external":
        p.error("--outside is of the table external")
    if args.name in PGU and not args.train:
        p.error(f"the table {args.name} trains its networks: give --train")
    return args


def _setting(args: argparse.Namespace, data: Data) -> Setting:
    """Where the table is made."""
    file = Path(args.model.partition(":")[2] or "-")
    weights = file_hash(file) if file.is_file() else ""
    identity = json.dumps(
        [args.model, weights, args.data, args.size, args.epochs if args.train else 0]
    )

    @cache
    def original(seed: int) -> nn.Module:
        if args.train:
            return trained(args.model, data, Recipe(epochs=args.epochs), seed=seed)
        return load_model(args.model, data.classes, data.channels).eval()

    name = f"{Path(args.model).stem} {data.name}"
    preset = f"{data.name} {args.model.partition(':')[0]}"
    outside = load_data(args.outside, size=args.size) if args.outside else None
    names: tuple[str, ...] = ()
    if args.name == "layers":
        names = tuple(y.name for y in in_order(original(0), data.train_x))
    return Setting(
        data, original, preset, not args.no_retrain, name, identity, outside, layers=names
    )


def main(argv: list[str] | None = None) -> int:
    """Make one table."""
    args = arguments(argv)
    data = load_data(args.data, size=args.size)
    classes = [int(c) for c in args.classes.split(",") if c] or list(range(len(data.classes)))
    picture: bytes | None = None
    more = ""
    if args.name in PGU:
        world = World(data, args.model, Recipe(epochs=args.epochs))
        rows, picture = table(args.name, world, args.seeds, args.shadows)
    elif args.name == "siblings":
        gone, rows = siblings(_setting(args, data).original(0), data)
        more = f"Forgotten: {gone}. "
    else:
        methods = args.method or [m for m in METHODS if m not in ("retrain", "depoison")]
        chosen: dict[str, Any] = {"methods": methods, "classes": classes, "seeds": args.seeds}
        rows = run(args.name, _setting(args, data), args.work, **chosen)
        picture = plot(rows, args.name)
    beside = PUBLISHED.get(args.name)
    text = f"# {args.name}: {ALL[args.name]}\n\n{more}"
    text += f"{args.model} on {args.data}, {args.seeds} seeds.\n\n{markdown(rows, beside)}\n"
    if args.name == "class-wise":
        text += f"\nUA by class, one setting for all (Unlink T5).\n\n{markdown(by_class(rows))}\n"
    path = write_page(args.out, args.name, text, data=rows, picture=picture)
    print(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
