"""Solving for wide features: processor seconds and memory of the default method, by width."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from erase_sd.algebra.certificate import certify
from erase_sd.algebra.methods import DEFAULT, get_method
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem
from erase_sd.text.background import WIDE
from lab.page import MEASURED, Goal, fill, goal_table, table, tell, write_page
from lab.speed import machine

WIDTHS = {
    768: "CLIP: SD 1",
    2048: "two CLIPs: SDXL",
    4096: "T5: SD 3, FLUX.1",
    7680: "Qwen 3, three layers: FLUX.2 klein",
    15360: "Mistral 3, three layers: FLUX.2 dev",
}
PROMPTS, EACH, FORGET, NULL = 4000, 2, 60, 77
AIMS = {4096: (10.0, 2.0), 15360: (60.0, 2.0)}  # seconds, gigabytes


def states(count: int, width: int, seed: int) -> torch.Tensor:
    """Rows whose variances fall over six decades, as those of text states do, `(n, d)`."""
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed + 9))
    return noise.mul_(torch.logspace(0, -3, width))


def measured(width: int) -> dict[str, Any]:
    """One solve and its certificate, in this process."""
    retain = SecondMoment.zeros(width)
    for batch in range(PROMPTS // 100):  # one state of each prompt is kept of wide features
        retain = retain + SecondMoment.of(states(100 if width > WIDE else 100 * EACH, width, batch))
    problem = Problem(
        forget=SecondMoment.of(states(FORGET, width, -1) + states(1, width, -2)),
        retain=retain,
        null=states(NULL, width, -3),
    )
    # Seconds of the processor: what else the machine does at the time does not count.
    method, start = get_method(DEFAULT), time.process_time()
    edit = method.solve(problem, method.options())
    solved = time.process_time()
    about = certify(edit, problem)
    return {
        "width": width,
        "rows": PROMPTS * (1 if width > WIDE else EACH),
        "held": "one by one" if retain.weights is not None else "as their sum",
        "solve": solved - start,
        "certify": time.process_time() - solved,
        "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "null change": about["null_change"],
    }


def page(rows: list[dict[str, Any]], command: str) -> str:
    """The page's text."""
    head = ["width", "of", "background rows", "held", "solve", "certificate", "peak memory"]
    cells = [
        [f"{r['width']:,}", WIDTHS[r["width"]], f"{r['rows']:,}", r["held"],
         f"{r['solve']:.1f} s", f"{r['certify']:.1f} s", f"{r['GB']:.2f} GB"]
        for r in rows
    ]  # fmt: skip
    return fill(
        "wide",
        command,
        machine=machine(),
        threads=torch.get_num_threads(),
        method=DEFAULT,
        table=table(head, cells),
        goals=goal_table(goals(rows)),
    )


def goals(rows: list[dict[str, Any]]) -> list[Goal]:
    """What was aimed at, and what came of it."""
    found = []
    for row in rows:
        if row["width"] in AIMS:
            seconds, size = AIMS[row["width"]]
            whole, name = row["solve"] + row["certify"], f"{row['width']:,} features"
            found.append(Goal.at_most(f"{name}, seconds", seconds, whole, "{:.1f}"))
            found.append(Goal.at_most(f"{name}, gigabytes", size, row["GB"], "{:.2f}"))
    return found


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every goal is met, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m lab.wide", description=__doc__)
    parser.add_argument("--width", type=int, help="measure this one here, and print it")
    parser.add_argument("--out", type=Path, default=MEASURED)
    args = parser.parse_args(argv)
    if args.width:
        print(json.dumps(measured(args.width)))
        return 0
    rows = []
    for width in WIDTHS:  # each in a process of its own, whose peak of memory is its own
        call = [sys.executable, "-m", "lab.wide", "--width", str(width)]
        rows.append(json.loads(subprocess.run(call, check=True, capture_output=True).stdout))
        print(f"{width}: {rows[-1]['solve']:.1f} s", file=sys.stderr, flush=True)
    print(f"wrote {write_page(args.out, 'wide', page(rows, 'make bench-wide'), data=rows)}")
    return tell(goals(rows))


if __name__ == "__main__":
    raise SystemExit(main())
