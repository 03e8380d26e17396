"""`erase-concept vision`: unlearn classes and samples from classifiers, ViTs and CLIP."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase_sd.cli.common import dispatch, parser, print_json, quiet_libraries
from erase_sd.cli.vision_original import cached, check_model, original

if TYPE_CHECKING:
    from torch import nn

    from erase_sd.vision import Task

EXAMPLES = """  erase-concept vision methods
  erase-concept vision unlearn --model mlp --train --data digits --forget class:3
  erase-concept vision unlearn --model resnet20:W.safetensors --data cifar10.npz --forget class:cat --out new.safetensors
  erase-concept vision unlearn --model VIT_FOLDER --data IMAGE_FOLDER --forget class:cat --method unlink --out new
  erase-concept vision unlearn --model clip:CLIP_FOLDER --data IMAGE_FOLDER --classes-file names.txt --forget class:cat
  erase-concept vision unlearn --model emoji-clip --data emoji --forget class:pizza --method unlink

Data: digits and emoji are in the package; an .npz, a folder of images or of the Hub's parquet files; cifar10, … or
OWNER/NAME from the Hub (#COLUMN names the labels where there are several).
What to forget: class:3, class:cat,dog, class:0#500, subclass:lion, random:0.1, index:1,5,7."""  # noqa: E501
TOLD = {
    "UA": "forgotten samples no longer recognised, %",
    "RA": "retained samples recognised, %",
    "TA": "test samples recognised, %",
    "MIA": "forgotten samples taken for unseen, %",
    "relearn": "brought back by relearning from one sample, %",
}


def run(argv: list[str]) -> int:
    """Dispatch to methods or unlearn."""
    return dispatch(
        "vision",
        "Unlearn classes and samples from classifiers, ViTs and CLIP.",
        EXAMPLES,
        argv,
        {
            "methods": (_methods, "list the methods and their options"),
            "unlearn": (_unlearn, "make a classifier forget; measure what went and what it cost"),
        },
    )


def _methods(argv: list[str]) -> int:
    p = parser(
        "vision methods", "The methods and their options.", "  erase-concept vision methods --json"
    )
    p.add_argument("--json", action="store_true", help="as JSON")
    args = p.parse_args(argv)
    from erase_sd.vision import METHODS

    if args.json:
        told = ("summary", "source", "kind", "retained", "options")
        print_json({n: {k: getattr(m, k) for k in told} for n, m in METHODS.items()})
        return 0
    for name, m in METHODS.items():
        options = ", ".join(f"{k} = {'auto' if v is None else v}" for k, v in m.options.items())
        print(f"{name:<13}{m.summary} [{m.source}]" + (f"\n{'':<13}{options}" if options else ""))
    return 0


def _add_model(p: ArgumentParser) -> None:
    p.add_argument(
        "--model",
        required=True,
        help="ARCHITECTURE:FILE.safetensors, emoji-clip, clip:FOLDER, a transformers "
        "folder, a Hub id",
    )
    p.add_argument(
        "--train", action="store_true", help="train a fresh network of that architecture first"
    )
    p.add_argument("--epochs", type=int, help="of --train (default: 40)")
    p.add_argument("--data", default="digits", help="digits, emoji, a path, or a name on the Hub")
    p.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="names of the data's classes, one a line, in the order of the labels: what zero-shot "
        "CLIP reads, or what a classifier calls them",
    )
    p.add_argument(
        "--size",
        type=int,
        help="scale images to this side (default: as the model's own image processor does, or as "
        "they are)",
    )
    p.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    p.add_argument("--seed", type=int, default=0, help="of everything random")
    p.add_argument("--json", action="store_true", help="numbers on stdout as JSON")


def _arguments(argv: list[str]) -> Namespace:
    from erase_sd.vision import DEFAULT, METHODS

    p = parser(
        "vision unlearn", "Make a classifier forget; measure what went and what it cost.", EXAMPLES
    )
    _add_model(p)
    p.add_argument(
        "--forget",
        required=True,
        help="class:3, class:cat,dog, subclass:lion, random:0.1, index:1,5",
    )
    p.add_argument("--method", default=DEFAULT, choices=METHODS, help=f"(default: {DEFAULT})")
    p.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the method; repeatable",
    )
    p.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="moments of the training data, made if absent; it holds no sample, and with "
        "it no retained sample is read",
    )
    p.add_argument(
        "--cache-out",
        type=Path,
        metavar="FILE",
        help="where to write what is left of --cache, for the next deletion from the written "
        "model: beside --out and named after it (new.safetensors, new.cache.safetensors)",
    )
    p.add_argument(
        "--out", type=Path, help="where to write the unlearned model (.safetensors, or a folder)"
    )
    p.add_argument(
        "--force", action="store_true", help="replace --out and --cache-out if they exist"
    )
    p.add_argument("--dry-run", action="store_true", help="say what would be forgotten, and stop")
    return _checked(p.parse_args(argv))


def _checked(args: Namespace) -> Namespace:
    """Refuse arguments that do not go together, before anything is loaded."""
    if args.out and args.method == "mask":
        raise ValueError("mask changes no weight: there is nothing to write")
    if args.epochs is not None and not args.train:
        raise ValueError("--epochs is of --train: give both")
    check_model(args)
    if args.cache_out and not (args.cache and args.out):
        raise ValueError(
            "--cache-out is what is left of --cache for the model written to --out: give both"
        )
    from erase_sd.pipelines.loading import check_device

    check_device(args.device)
    if args.cache_out:
        from erase_sd.models.files import check_beside

        check_beside(args.out, [args.cache_out])  # both take their places together
    for path in (args.out, args.cache_out):
        if path and path.exists() and not args.force:
            raise FileExistsError(f"{path} exists; choose another path or give --force")
    return args


def given_options(pairs: list[str], method: str) -> dict[str, Any]:
    """`--option key=value`, as JSON where it is JSON."""
    from erase_sd.vision.methods import options_of

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"expected --option key=value, got {pair!r}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    options_of(method, found)  # a wrong name is told before anything is loaded
    return found


@dataclass(frozen=True)
class Report:
    """What was done and what it did."""

    about: dict[str, Any]
    before: dict[str, float]
    after: dict[str, float]

    def lines(self) -> list[str]:
        """For people."""
        rows = [f"{'':<46}{'before':>8}{'after':>8}"]
        shown = [k for k in TOLD if self.before[k] == self.before[k]]  # NaN where it does not apply
        return rows + [f"{TOLD[k]:<46}{self.before[k]:>8.2f}{self.after[k]:>8.2f}" for k in shown]


def _numbers(model: nn.Module, task: Task) -> dict[str, float]:
    from erase_sd.vision import measure
    from erase_sd.vision.metrics import relearn

    return measure(model, task) | {"relearn": relearn(model, task)}


def _unlearn(argv: list[str]) -> int:
    args = _arguments(argv)
    options = given_options(args.option, args.method)
    quiet_libraries()
    from erase_sd.models.files import atomic_paths
    from erase_sd.vision import make_task, unlearn
    from erase_sd.vision.methods.pgu import remaining
    from erase_sd.vision.models import write_weights

    model, data = original(args)
    task = make_task(data, args.forget, seed=args.seed)
    counts = [len(part) for part in (task.forget, task.retain, task.test)]
    told = "{}: {} samples to forget, {} to keep, {} to test".format(task.name, *counts)
    if args.dry_run or model is None:
        print(told)
        return 0
    cache = cached(args, model, data)
    result = unlearn(model, task, args.method, seed=args.seed, cache=cache, **options)
    about = {
        "model": args.model,
        "data": args.data,
        "forget": task.name,
        "method": args.method,
        "options": result.options,
        "seconds": round(result.seconds, 4),
    }
    report = Report(about, _numbers(model, task), _numbers(result.model, task))
    told_of = {k: about[k] for k in ("model", "forget", "method", "options")}
    written = [path for path in (args.out, args.cache_out) if path]
    if written:
        with atomic_paths(written, force=args.force) as (draft, *more):
            write_weights(result.model, draft, told_of, suffix=args.out.suffix)
            if more and cache is not None:
                remaining(model, task, cache).save(more[0], result.model)
    if args.json:
        print_json(about | {"before": report.before, "after": report.after})
        return 0
    print("\n".join([told, f"{args.method}: {result.seconds:.3f} s", "", *report.lines()]))
    print("".join(f"\nwrote {path}" for path in written), end="\n" if written else "")
    return 0
