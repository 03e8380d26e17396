"""Train emoji-sd from nothing: `python -m lab.train_emoji`.

Each stage keeps its state in the work folder, so an interrupted run goes on where it stopped, and
every batch is a function of (seed, stage, step), so a resumed run sees the batches an uninterrupted
one would have seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from erase_sd._lazy import resolve
from erase_sd.emoji.clip import load_clip
from lab.train_emoji.plan import CONTINUED, PLANS, STAGES, TRAINED, USUAL
from lab.train_emoji.stages import RUN
from lab.train_emoji.towers import save_clip
from lab.train_emoji.trainer import Trainer


def unpack(work: Trainer, weights: Path) -> None:
    """Put shipped weights where the stages before the generator's would have left theirs."""
    sd = weights / "emoji-sd"
    for source, name in ((sd / "vae", "vae"), (sd / "tokenizer", "tokenizer")):
        if not (work.out / name).exists():
            shutil.copytree(source, work.out / name)
    if not (work.out / "clip").exists():
        save_clip(load_clip(weights)[0], work.out / "clip")
    if not (work.out / "judge.pt").exists():
        torch.save(load_file(weights / "judge.safetensors"), work.out / "judge.pt")


def run(work: Trainer, stages: Iterable[str]) -> None:
    """Run stages in order; each one's seconds are added up in `seconds.json`."""
    for stage in stages:
        work.clock.start(stage)
        resolve(RUN[stage])(work)
        work.clock.tick()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.train_emoji", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("build/emoji"), help="work folder (resumed if it exists)"
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=list(USUAL),
        metavar="STAGE",
        help=f"of {', '.join(STAGES)}; default: all but judge2, the laboratory's own judge",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plan", choices=PLANS, help="default: the plan for the device")
    parser.add_argument(
        "--seed", type=int, help="default: 0; with --init, one more than those weights' last seed"
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="WEIGHTS",
        help="train the generator and the image tower of these weights on",
    )
    parser.add_argument("--steps", type=int, help="steps of the generator, instead of the plan's")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line of the training."""
    args = _parser().parse_args(argv)
    kind = "cuda" if args.device.startswith("cuda") else "cpu"
    plan = args.plan or kind + ("-continue" if args.init else "")
    stages = [s for s in args.stages if not args.init or s in CONTINUED]
    seed = args.seed
    if seed is None:  # a continuation sees other scenes and other noise
        before = (args.init / "training.json").read_text() if args.init else '{"seed": -1}'
        seed = json.loads(before)["seed"] + 1
    work = Trainer(
        args.out, plan=plan, device=args.device, seed=seed, init=args.init, steps=args.steps
    )
    if args.init:
        unpack(work, args.init)
        stages = [s for s in stages if s in work.plan or s not in TRAINED]
    run(work, stages)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
