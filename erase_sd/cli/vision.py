"""`erase-concept vision`: unlearn classes and samples from classifiers, ViTs and CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from erase_sd.cli.common import dispatch, parser, print_json, quiet_libraries

EXAMPLES = """  erase-concept vision methods
  erase-concept vision unlearn --model mlp --train --data digits --forget class:3
  erase-concept vision unlearn --model resnet20:WEIGHTS.safetensors --data cifar10.npz --forget class:cat --out new.safetensors
  erase-concept vision unlearn --model emoji-clip --data emoji --forget class:pizza --method unlink
  erase-concept vision table class-wise --model mlp --train --data digits --out results/digits

Data: digits and emoji are in the package; an .npz, .parquet or image folder; cifar10, cifar100, … from the Hub.
What to forget: class:3, class:cat,dog, subclass:lion, random:0.1, index:1,5,7."""  # noqa: E501


def run(argv: list[str]) -> int:
    """Dispatch to methods, unlearn or table."""
    return dispatch(
        "vision", "Unlearn classes and samples from classifiers, ViTs and CLIP.", EXAMPLES, argv,
        {
            "methods": (_methods, "list the methods and their options"),
            "unlearn": (_unlearn, "make a classifier forget; measure what went and what it cost"),
            "table": (_table, "a table of the papers, resumable"),
        },
    )  # fmt: skip


def _methods(argv: list[str]) -> int:
    p = parser("vision methods", "The methods and their options.", "  erase-concept vision methods --json")
    p.add_argument("--json", action="store_true")
    args = p.parse_args(argv)
    from erase_sd.vision import METHODS

    if args.json:
        print_json({n: {"summary": m.summary, "source": m.source, "kind": m.kind, "options": m.options}
                    for n, m in METHODS.items()})  # fmt: skip
        return 0
    for name, m in METHODS.items():
        options = ", ".join(f"{k} = {v}" for k, v in m.options.items())
        print(f"{name:<13}{m.summary} [{m.source}]" + (f"\n{'':<13}{options}" if options else ""))
    return 0


def _add_common(p: Any) -> None:
    p.add_argument("--model", required=True, help="ARCHITECTURE:FILE.safetensors, emoji-clip, a folder, a Hub id")
    p.add_argument("--train", action="store_true", help="train a fresh network of that architecture first")
    p.add_argument("--epochs", type=int, default=40, help="of --train")
    p.add_argument("--data", default="digits", help="digits, emoji, a path, or a name on the Hub")
    p.add_argument("--size", type=int, help="scale images to this side")
    p.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="numbers on stdout as JSON")


def _model(args: Any, data: Any, seed: int) -> Any:
    """The original model: loaded, or trained with a seed."""
    from erase_sd.vision.models import ARCHITECTURES, load_model, trained

    if not args.train:
        if args.model in ARCHITECTURES:
            raise ValueError(f"{args.model} is untrained: give {args.model}:FILE.safetensors or --train")
        return load_model(args.model, len(data.classes), data.train_x.shape[1]).to(args.device).eval()
    how = {"seed": seed, "epochs": args.epochs, "device": args.device}
    return trained(args.model, data, **how, desc="training the original")


def network(model: str) -> str:
    """The architecture that `--model` names."""
    return model.partition(":")[0]


def _options(pairs: list[str], method: str) -> dict[str, Any]:
    """`--option key=value`, as JSON where it is JSON."""
    from erase_sd.vision import METHODS

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"expected --option key=value, got {pair!r}")
        if key not in METHODS[method].options:
            raise ValueError(f"{method} has no option {key!r}; it has {', '.join(METHODS[method].options) or 'none'}")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _unlearn(argv: list[str]) -> int:
    from erase_sd.vision import DEFAULT, METHODS

    p = parser("vision unlearn", "Make a classifier forget; measure what went and what it cost.", EXAMPLES)
    _add_common(p)
    p.add_argument("--forget", required=True, help="class:3, class:cat,dog, subclass:lion, random:0.1, index:1,5")
    p.add_argument("--method", default=DEFAULT, choices=METHODS)
    p.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the method; repeatable")
    p.add_argument("--cache", type=Path, metavar="FILE",
                   help="pgu: the training data's gradient spaces, made if absent; holds no sample")  # fmt: skip
    p.add_argument("--out", type=Path, help="where to write the unlearned weights (.safetensors)")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--dry-run", action="store_true", help="say what would be forgotten, and stop")
    args = p.parse_args(argv)
    options = _options(args.option, args.method)
    if args.cache and args.method != "pgu":
        raise ValueError(f"--cache is of pgu; {args.method} has none")
    if args.out and args.method == "mask":
        raise ValueError("mask changes no weight: there is nothing to write")
    if args.out and args.out.exists() and not args.force:
        raise FileExistsError(f"{args.out} exists; choose another --out or give --force")
    quiet_libraries()
    from erase_sd.vision import load_data, make_task, unlearn
    from erase_sd.vision.metrics import measure, relearn
    from erase_sd.vision.models import save_weights

    data = load_data(args.data, size=args.size)
    task = make_task(data, args.forget, seed=args.seed)
    told = f"{task.name}: {len(task.forget)} samples to forget, {len(task.retain)} to keep, {len(task.test)} to test"
    if args.dry_run:
        print(told)
        return 0
    model = _model(args, data, args.seed)
    before = measure(model, task)
    if args.cache:
        from erase_sd.vision.pgu import Cache
        from erase_sd.vision.task import Samples

        if not args.cache.exists():
            Cache.of(model, Samples(data.train_x, data.train_y)).save(args.cache, model)
        options["cache"] = Cache.load(args.cache, model)
    result = unlearn(model, task, args.method, seed=args.seed, preset=f"{data.name} {network(args.model)}", **options)
    after = measure(result.model, task)
    report = {
        "model": args.model, "data": args.data, "forget": task.name, "method": args.method, "options": result.options,
        "seconds": round(result.seconds, 4), "before": before, "after": after,
        "relearn": {"before": relearn(model, task), "after": relearn(result.model, task)},
    }  # fmt: skip
    if args.out:
        save_weights(result.model, args.out, {k: report[k] for k in ("model", "forget", "method", "options")},
                     force=args.force)  # fmt: skip
    if args.json:
        print_json(report)
        return 0
    print(f"{told}\n{args.method}: {result.seconds:.3f} s\n")
    print(f"{'':<44}{'before':>8}{'after':>8}")
    names = {"UA": "forgotten samples no longer recognised, %", "RA": "retained samples recognised, %",
             "TA": "test samples recognised, %", "MIA": "forgotten samples taken for unseen, %"}  # fmt: skip
    for key, name in names.items():
        print(f"{name:<44}{before[key]:>8.2f}{after[key]:>8.2f}")
    if task.classes:
        name = "brought back by relearning from one sample, %"
        print(f"{name:<44}{report['relearn']['before']:>8.2f}{report['relearn']['after']:>8.2f}")
    if args.out:
        print(f"\nwrote {args.out}")
    return 0


def _table(argv: list[str]) -> int:
    from erase_sd.vision import METHODS
    from erase_sd.vision.tables import TABLES

    told = "\n".join(f"  {n:<13}{t}" for n, t in TABLES.items())
    p = parser("vision table", "A table of the papers, resumable.", f"{EXAMPLES}\n\ntables:\n{told}")
    p.add_argument("name", choices=TABLES)
    _add_common(p)
    p.add_argument("--method", action="append", default=[], choices=METHODS, help="repeatable (default: all)")
    p.add_argument("--classes", help="comma-separated numbers (default: all)")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--no-retrain", action="store_true", help="no retrained reference, hence no gap")
    p.add_argument("--out", type=Path, required=True, help="folder for the journal, table.md, table.json, table.png")
    args = p.parse_args(argv)
    if args.seeds < 1:
        raise ValueError("expected --seeds of at least 1")
    quiet_libraries()
    from functools import cache

    from erase_sd.models.files import file_hash
    from erase_sd.vision import load_data
    from erase_sd.vision.tables import Setting, markdown, plot, run

    data = load_data(args.data, size=args.size)
    try:
        classes = [int(c) for c in args.classes.split(",")] if args.classes else list(range(len(data.classes)))
    except ValueError as error:
        raise ValueError(f"expected --classes such as 0,3,5, got {args.classes!r}") from error
    original = cache(lambda seed: _model(args, data, seed))
    name = f"{Path(args.model).stem} {data.name}"
    file = Path(args.model.partition(":")[2] or "-")
    weights = file_hash(file) if file.is_file() else ""
    identity = json.dumps([args.model, weights, args.data, args.size, args.epochs if args.train else 0])
    retrain = not args.no_retrain and not args.model.startswith("emoji-clip")
    setting = Setting(data, original, f"{data.name} {network(args.model)}", retrain, name, identity)
    methods = args.method or [m for m in METHODS if m != "retrain"]
    rows = run(args.name, setting, args.out, methods=methods, classes=classes, seeds=args.seeds)
    lines = [f"# {args.name}: {TABLES[args.name]}", "", f"{name}, {len(classes)} classes, {args.seeds} seeds.", ""]
    lines += markdown(rows)
    (args.out / f"{args.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / f"{args.name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    plot(rows, args.out / f"{args.name}.png", args.name)
    if args.json:
        print_json(rows)
    else:
        print("\n".join(lines))
        print(f"\ntable    {args.out / args.name}.md")
    return 0
