"""The papers' tables from end to end: checks before the first image, then hours that can be cut.

`--rehearse` runs the same on emoji-sd with stand-ins of the same formats, in minutes and offline.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from erase_sd.cli.common import quiet_libraries
from erase_sd.eval.report import table as run_table
from erase_sd.eval.runner import evaluate
from erase_sd.eval.variants import Asked, pipelines_of, variants_of
from erase_sd.models.checkpoint import Checkpoint
from erase_sd.models.embedded import EMBEDDED
from erase_sd.operations.common import open_model
from erase_sd.processes import Share
from lab.page import MEASURED, fill, write_page
from lab.paper_setup import METHODS, SD14, TABLES, Setup, check, stand_ins


def run_one(setup: Setup, name: str, base: Checkpoint, share: Share) -> dict[str, Any] | None:
    """One table, or go on with it; None in all processes but the first."""
    which = TABLES[name]
    protocol = setup.protocol(which)
    variants = variants_of(Asked(methods=METHODS), protocol, base, setup.model)
    pipes = pipelines_of(protocol, base, device=setup.device)
    folder = setup.work / f"{name}-{protocol.hash}"
    return evaluate(protocol, variants, pipes, folder, share, real=setup.real(which))


def page(setup: Setup, results: Mapping[str, Any], command: str, out: Path) -> Path:
    """Write `sd14.md` and `.json` with the tables that are done."""
    sections = []
    for name, which in TABLES.items():
        lines = [f"## {which.title}"]
        if name in results:
            lines.append("\n".join(run_table([results[name]])))
            lines += _everything(results[name]) + _by_label(results[name])
        else:
            lines.append("Not run yet.")
        lines += [f"Published: {which.published}"] if which.published else []
        sections.append("\n\n".join(lines))
    told = (
        ", a rehearsal: few images of two steps, stand-ins for data and networks; no number here "
        "means anything" if setup.rehearse else ""
    )  # fmt: skip
    text = fill("sd14", command, model=setup.model, rehearsed=told, tables="\n\n".join(sections))
    return write_page(out, "sd14", text, data=dict(results))


def _everything(result: Mapping[str, Any]) -> list[str]:
    """Fréchet distances to real pictures over all that is drawn."""
    told = {
        n: v["frechet to real"]["everything"]
        for n, v in result["variants"].items()
        if "frechet to real" in v
    }
    line = ", ".join(f"{n} {value:.4g}" for n, value in told.items())
    features = result["protocol"].get("features", "")
    return [f"To real pictures over everything drawn, in {features}: {line}."] if told else []


def _by_label(result: Mapping[str, Any]) -> list[str]:
    """Detections of each label, and how much less than in the original."""
    counted = {n: v["counts"] for n, v in result["variants"].items() if "counts" in v}
    labels = list(dict.fromkeys(x for c in counted.values() for x in c["labels"]))
    if not labels:
        return []
    lines = ["| label | " + " | ".join(counted) + " |", "|---" * (len(counted) + 1) + "|"]
    for label in labels:
        cells = []
        for c in counted.values():
            less = c.get("decrease by label", {}).get(label)
            told = "" if less is None else f" ({-100 * less:+.0f} %)"
            cells.append(f"{c['labels'].get(label, 0)}{told}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return ["\n".join(lines)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.paper_tables", description=__doc__)
    parser.add_argument("--model", default=SD14, help=f"folder or Hub id (default: {SD14})")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("build/paper/data"),
        help="folder of i2p.csv, coco_30k.csv, ring-a-bell.csv, imagenette/, coco/, inception.pth",
    )
    parser.add_argument("--work", type=Path, default=Path("build/paper"), help="runs and images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--limit", type=int, help="rows of every group and role: a trial")
    parser.add_argument("--check", action="store_true", help="check and say what it takes")
    parser.add_argument("--rehearse", action="store_true", help="on emoji-sd, with stand-ins")
    parser.add_argument("--out", type=Path, help="folder of the page (default: docs/measured)")
    return parser


def _setup(args: argparse.Namespace) -> tuple[Setup, Path]:
    if not args.rehearse:
        made = Setup(args.model, args.data, args.work, args.device, limit=args.limit)
        return made, args.out or MEASURED
    work = args.work / "rehearsal"
    made = Setup(EMBEDDED, work / "data", work, "cpu", rehearse=True, limit=args.limit)
    return made, args.out or work


def main(argv: list[str] | None = None) -> int:
    """Check, draw, measure, write the page; exit 2 if something stands in the way."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    setup, out = _setup(args)
    share = Share.of(setup.device)
    setup = replace(setup, device=share.device)
    if setup.rehearse and share.process == 0:
        stand_ins(setup.data)
    share.wait()
    base = open_model(setup.model)
    if share.process == 0:
        costs, problems = check(setup, args.only, base, share.processes)
        for name, c in costs.items():
            told = f"{c.images:>7} images {c.hours:>8.2f} h {c.gigabytes:>7.2f} GB"
            print(f"{name:<12}{told}")
        for problem in problems:
            print(f"MISSING {problem}")
        if problems:
            return 2  # launchers end the other processes then
    share.wait()
    if args.check:
        return 0
    command = shlex.join(["python", "-m", "lab.paper_tables", *_words(args)])
    results: dict[str, Any] = {}
    for name in args.only:
        result = run_one(setup, name, base, share)
        if result is not None:
            results[name] = result
            print(f"wrote {page(setup, results, command, out)}")
    return 0


def _words(args: argparse.Namespace) -> list[str]:
    """The arguments that make this page again."""
    words = ["--rehearse"] if args.rehearse else ["--model", args.model]
    words += ["--limit", str(args.limit)] if args.limit else []
    return words + (["--only", *args.only] if len(args.only) < len(TABLES) else [])


if __name__ == "__main__":
    raise SystemExit(main())
