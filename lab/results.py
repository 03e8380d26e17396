"""Every method on every offline protocol, on the embedded model; resumes."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erase_sd.algebra.methods import DEFAULT, METHODS
from erase_sd.cli.common import quiet_libraries
from erase_sd.eval.protocol import load_protocol
from erase_sd.eval.report import table
from erase_sd.eval.runner import evaluate
from erase_sd.eval.variants import Asked, pipelines_of, variants_of
from erase_sd.models.embedded import EMBEDDED
from erase_sd.models.opening import open_checkpoint
from erase_sd.pipelines.loading import model_path
from lab.page import MEASURED, TEMPLATES, fill, write_page

# Attacks take a minute for every concept and variant, so they are for the methods that people
# compare.
PLAN: dict[str, tuple[str, ...]] = {
    "emoji-objects": tuple(METHODS),
    "emoji-policy": tuple(METHODS),
    "emoji-artists": tuple(METHODS),
    "emoji-attack": (DEFAULT, "unlink", "uce"),
}


def run(
    asked: Asked, name: str, folder: Path, *, limit: int | None = None, steps: int | None = None
) -> dict[str, Any]:
    """Run one protocol, or go on with it; a run made by other defaults is made again.

    Args:
        asked: What is compared with the original.
        name: Of the protocol.
        folder: The run's.
        limit: Rows of every group, role, part and attack; None for all.
        steps: Denoising steps; None for the protocol's own.

    Returns:
        The contents of `results.json`.
    """
    made_by = folder / "defaults.json"
    if folder.exists() and not (
        made_by.is_file() and made_by.read_text() == defaults(asked.methods)
    ):
        shutil.rmtree(folder)  # nothing of it may be mixed in
    protocol = load_protocol(name, overrides={"steps": steps} if steps else None)
    protocol = protocol.limited(limit) if limit else protocol
    base = open_checkpoint(model_path(EMBEDDED))
    variants = variants_of(asked, protocol, base, EMBEDDED)
    folder.mkdir(parents=True, exist_ok=True)
    if not made_by.is_file():
        made_by.write_text(defaults(asked.methods))
    result = evaluate(protocol, variants, pipelines_of(protocol, base), folder / "run")
    if result is None:
        raise RuntimeError(f"{name} was run in a second process, which has no results")
    return result


def defaults(methods: Sequence[str]) -> str:
    """All that some methods do unless told otherwise, as text."""
    return json.dumps({name: asdict(METHODS[name]) for name in methods}, sort_keys=True)


def results_page(results: Mapping[str, dict[str, Any]], command: str, out: Path) -> Path:
    """Write `results.md` and `.json`.

    Args:
        results: Contents of `results.json` by protocol.
        command: What made them.
        out: Folder.
    """
    sections = []
    for name, result in results.items():
        about = (TEMPLATES / "results-attacks.md").read_text("utf-8") if "attack" in name else ""
        lines = [f"## {name}", *([about.strip()] if about else []), "\n".join(table([result]))]
        sections.append("\n\n".join(lines))
    text = fill("results", command, tables="\n\n".join(sections))
    return write_page(out, "results", text, data=results)


def main(argv: list[str] | None = None) -> int:
    """Run or resume every protocol and write the page."""
    parser = argparse.ArgumentParser(prog="python -m lab.results", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/results"), help="runs; images are kept there"
    )
    parser.add_argument("--out", type=Path, default=MEASURED)
    parser.add_argument(
        "--limit", type=int, help="rows of every group, role, part and attack: a trial"
    )
    parser.add_argument("--only", nargs="+", choices=PLAN, default=list(PLAN), metavar="PROTOCOL")
    args = parser.parse_args(argv)
    quiet_libraries()
    results = {}
    for name in args.only:
        start = time.monotonic()
        asked = Asked(methods=PLAN[name], robust=True)
        results[name] = run(asked, name, args.work / name, limit=args.limit)
        print(f"{name}: {time.monotonic() - start:.0f} s")
    command = ["python", "-m", "lab.results"]
    command += ["--limit", str(args.limit)] if args.limit else []
    command += ["--only", *args.only] if len(args.only) < len(PLAN) else []
    print(f"wrote {results_page(results, shlex.join(command), args.out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
