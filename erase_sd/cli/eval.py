"""`erase-concept eval`: protocols, runs, comparisons, reports."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from erase_sd.algebra.methods import DEFAULT, METHODS
from erase_sd.cli.common import add_model, dispatch, open_model, parser, print_json, quiet_libraries

if TYPE_CHECKING:
    from erase_sd.eval.protocol import Protocol

EXAMPLES = """  erase-concept eval list
  erase-concept eval run emoji-objects --method rayleigh --method uce --out results/objects
  erase-concept eval run i2p-nudity --model ./sd14 --erasure ./sd14-safe --out results/nudity
  erase-concept eval run imagenette-classwise --model ./sd14 --method rayleigh --limit 10 --out try
  accelerate launch -m erase_sd.cli.main eval run i2p-nudity --model ./sd14 --out results/nudity
  erase-concept eval compare results/objects results/other
  erase-concept eval report results/objects --out objects.html

A run that was interrupted goes on where it stopped when the same command is given again. The
original model is always drawn as well. Results with different protocol hashes are not comparable,
and `compare` refuses them."""


def run(argv: list[str]) -> int:
    """Dispatch to list, show, run, compare or report."""
    return dispatch(
        "eval", "Evaluate erasures by protocols that make numbers comparable.", EXAMPLES, argv,
        {
            "list": (_list, "the protocols in this package"),
            "show": (_show, "a protocol with its hash and first rows"),
            "run": (_run, "draw, judge and count; goes on where it was interrupted"),
            "compare": (_compare, "results side by side, if they are comparable"),
            "report": (_report, "one self-contained HTML page of a run"),
        },
    )  # fmt: skip


def _list(argv: list[str]) -> int:
    p = parser("eval list", "The protocols in this package.", "  erase-concept eval list --json")
    p.add_argument("--json", action="store_true", help="names and summaries as JSON")
    args = p.parse_args(argv)
    from erase_sd.eval.protocol import available

    found = available()
    if args.json:
        print_json(found)
    else:
        for name, summary in found.items():
            print(f"{name:<22}{summary}")
    return 0


def _add_protocol(p: argparse.ArgumentParser) -> None:
    p.add_argument("protocol", help="name (see `eval list`) or a YAML file")
    p.add_argument(
        "--data",
        type=Path,
        metavar="CSV",
        help="the protocol's prompts, if they are not within reach",
    )
    p.add_argument(
        "--inception",
        metavar="FILE",
        help="weights of InceptionV3 for distances: a file, or OWNER/NAME:FILE on the Hub",
    )
    p.add_argument(
        "--limit",
        type=int,
        help="only so many rows of every group, role, part and attack (another hash)",
    )
    p.add_argument(
        "--steps", type=int, help="denoising steps instead of the protocol's (another hash)"
    )
    p.add_argument(
        "--batch", type=int, help="images at once instead of the protocol's (another hash)"
    )


def _protocol(args: argparse.Namespace) -> Protocol:
    from erase_sd.eval.protocol import load_protocol

    overrides = {k: getattr(args, k) for k in ("steps", "batch") if getattr(args, k) is not None}
    if any(v < 1 for v in overrides.values()) or (args.limit is not None and args.limit < 1):
        raise ValueError("expected --steps, --batch and --limit of at least 1")
    protocol = load_protocol(
        args.protocol, data=args.data, overrides=overrides, inception=args.inception
    )
    return protocol.limited(args.limit) if args.limit else protocol


def _show(argv: list[str]) -> int:
    p = parser(
        "eval show",
        "A protocol with its hash and first rows.",
        "  erase-concept eval show emoji-objects",
    )
    _add_protocol(p)
    p.add_argument("--json", action="store_true")
    args = p.parse_args(argv)
    quiet_libraries()
    protocol = _protocol(args)
    about = protocol.describe()
    if args.json:
        print_json(about)
        return 0
    print(f"{protocol.name}: {protocol.summary}\nfrom {protocol.source}\n")
    for key, value in about.items():
        print(f"{key:<16}{value if not isinstance(value, dict) else json.dumps(value)}")
    for row in protocol.rows[:5]:
        print(f"  {row.id}  {row.role:<7} seed {row.seed:<7} {row.prompt}")
    return 0


def _run_parser() -> argparse.ArgumentParser:
    p = parser(
        "eval run",
        "Draw, judge, measure; resumable; many processes by `accelerate launch` or `torchrun`.",
        EXAMPLES,
    )
    _add_protocol(p)
    add_model(p)
    p.add_argument(
        "--erasure",
        action="append",
        type=Path,
        default=[],
        help="erasure file, or folder that holds one; repeatable",
    )
    p.add_argument(
        "--method",
        action="append",
        default=[],
        choices=list(METHODS),
        help="erase each of the protocol's concepts by this method, at its defaults; repeatable",
    )
    p.add_argument(
        "--robust", action="store_true", help=f"also the default method ({DEFAULT}) in robust mode"
    )
    p.add_argument(
        "--also",
        action="append",
        type=Path,
        default=[],
        help="another checkpoint folder, or a folder that holds one for each group; repeatable",
    )
    p.add_argument(
        "--real",
        type=Path,
        metavar="FOLDER",
        help="real pictures that distances are also taken to; sub-folders are classes",
    )
    p.add_argument(
        "--device",
        default="cpu",
        help="cpu, cuda, mps; under accelerate launch each process has its own",
    )
    p.add_argument(
        "--out", type=Path, required=True, help="folder of the run (resumed if it exists)"
    )
    p.add_argument("--dry-run", action="store_true", help="say what would be drawn")
    p.add_argument("--json", action="store_true", help="the results on stdout")
    return p


def _run(argv: list[str]) -> int:
    args = _run_parser().parse_args(argv)
    quiet_libraries()
    from erase_sd.eval.report import table
    from erase_sd.eval.run_folder import batches
    from erase_sd.eval.runner import evaluate
    from erase_sd.eval.variants import Asked, pipelines_of, variants_of
    from erase_sd.processes import Share

    share = Share.of(args.device)
    protocol, base = _protocol(args), open_model(args)
    files = _by_name(args.erasure)
    asked = Asked(files, tuple(args.method), args.robust, tuple(args.also))
    variants = variants_of(asked, protocol, base, str(args.model))
    if args.dry_run:
        each, names = len(batches(protocol)), ", ".join(v.name for v in variants)
        images = f"{len(protocol.rows) * len(variants)} images of {len(variants)} variants"
        print(f"{protocol.name} {protocol.hash}: {images}, {each} batches each: {names}")
        return 0
    pipeline = pipelines_of(protocol, base, variant=args.variant, device=share.device)
    result = evaluate(protocol, variants, pipeline, args.out, share, real=args.real)
    if result is not None and args.json:
        print_json(result)
    elif result is not None:
        print("\n".join(table([result])))
        print(f"\nresults  {args.out / 'results.json'}")
    return 0


def _by_name(given: list[Path]) -> dict[str, Path]:
    """Erasure files by the name of what was given; the folder's, where that holds one."""
    from erase_sd.operations.common import erasure_path

    names = [g.name.removesuffix(".safetensors") for g in given]
    if len(set(names)) < len(names):
        raise ValueError(f"two variants of one name in {', '.join(names)}; rename a file")
    return {name: erasure_path(g) for name, g in zip(names, given, strict=True)}


def _compare(argv: list[str]) -> int:
    p = parser("eval compare", "Results side by side, if they are comparable.",
               "  erase-concept eval compare results/objects results/other")  # fmt: skip
    p.add_argument("results", nargs="+", type=Path, help="folders of runs, or their results.json")
    p.add_argument(
        "--anyway", action="store_true", help="although the protocols differ; the output says so"
    )
    p.add_argument("--json", action="store_true")
    args = p.parse_args(argv)
    from erase_sd.eval.report import table
    from erase_sd.eval.run_folder import results_of, understood

    results = [results_of(r) for r in args.results]
    for path, result in zip(args.results, results, strict=True):
        with understood(path):
            table([result])
    hashes = {r["protocol"]["hash"] for r in results}
    if len(hashes) > 1 and not args.anyway:
        told = ", ".join(f"{r['protocol']['name']} {r['protocol']['hash']}" for r in results)
        raise ValueError(
            f"these numbers are not comparable: {told}; --anyway shows them all the same"
        )
    if args.json:
        print_json({"comparable": len(hashes) == 1, "results": results})
    else:
        if len(hashes) > 1:
            print("NOT COMPARABLE: the protocols differ\n")
        print("\n".join(table(results)))
    return 0


def _report(argv: list[str]) -> int:
    p = parser("eval report", "One self-contained HTML page of a run.",
               "  erase-concept eval report results/objects --out objects.html")  # fmt: skip
    p.add_argument("run", type=Path, help="folder of a run")
    p.add_argument("--out", type=Path, help="page to write (default: RUN/report.html)")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    args = p.parse_args(argv)
    from erase_sd.eval.report import page
    from erase_sd.eval.run_folder import results_of, understood
    from erase_sd.models.files import atomic_path

    out = args.out or args.run / "report.html"
    with understood(args.run):
        text = page(results_of(args.run), args.run)
    with atomic_path(out, force=args.force or args.out is None) as draft:
        draft.write_text(text, encoding="utf-8")
    print(f"wrote {out}")
    return 0
