"""Kill it, fill its disk, damage its inputs, write with several processes at once.

After each trial: the final name holds nothing, the old thing or the new thing, whole; the base is
untouched; what was said is one line.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from erase_sd.cli.common import quiet_libraries
from lab.fault_bench import Bench
from lab.fault_trials import Outcomes, bad_inputs, full_disks, kills, writers
from lab.page import MEASURED, fill, table, write_page


def wrong(sections: Mapping[str, Outcomes]) -> int:
    """Trials that ended as none may: their outcome is told in capitals."""
    counts = [c for results in sections.values() for c in results.values()]
    return sum(n for c in counts for outcome, n in c.items() if outcome[:1].isupper())


def faults_page(sections: Mapping[str, Outcomes], command: str) -> str:
    """The page's text."""
    told = []
    for title, results in sections.items():
        rows = [
            [what, count.total(), ", ".join(f"{o} {n}" for o, n in count.most_common())]
            for what, count in results.items()
        ]
        told.append(f"## {title}\n\n" + table(["what", "trials", "outcome"], rows))
    total = sum(c.total() for results in sections.values() for c in results.values())
    return fill("faults", command, sections="\n\n".join(told), total=total, wrong=wrong(sections))


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every trial ended as it must, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m lab.faults", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/faults"))
    parser.add_argument("--trials", type=int, default=20, help="per operation and kind of fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=MEASURED)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a forked process has no other threads
    quiet_libraries()
    bench = Bench(args.work.resolve(), args.seed)
    sections = {
        "Killed at a random moment (SIGKILL)": kills(bench, args.trials),
        "No room left after a random number of bytes": full_disks(bench, args.trials),
        "Damaged and hostile inputs": bad_inputs(bench, 12 * args.trials),
        "Several writers": writers(bench, max(args.trials // 4, 1)),
    }
    shutil.rmtree(args.work)
    text = faults_page(sections, f"python -m lab.faults --trials {args.trials} --seed {args.seed}")
    print(text)
    print(f"wrote {write_page(args.out, 'faults', text)}")
    return 1 if wrong(sections) else 0


if __name__ == "__main__":
    raise SystemExit(main())
