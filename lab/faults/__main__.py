"""Kill it, starve it, forge its inputs, attack its page: `python -m lab.faults`.

Trials run in portions, each in a process of its own and from a seed of its own; a portion that is
in the journal is not run again. An outcome in capitals is one that may not be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from erase_sd.cli.common import quiet_libraries
from lab.faults.asks import requests
from lab.faults.bench import Bench, Outcome
from lab.faults.forged import forged_file
from lab.faults.harm import failing_call, full_disk, kill, mixed_writers, writers
from lab.faults.live import interrupted, threads
from lab.faults.words import command_line
from lab.journal import Journal
from lab.page import MEASURED, fill, table, write_page

Trial = Callable[[Bench, np.random.Generator], Outcome]


def each(trial: Trial) -> Callable[[Bench, np.random.Generator, int], list[Outcome]]:
    """So many of one trial; the originals and the temporary files are looked at after each."""

    def one(bench: Bench, rng: np.random.Generator) -> Outcome:
        what, outcome = trial(bench, rng)
        spoilt = bench.spoilt()
        return what, f"{spoilt}; {outcome}" if spoilt else outcome

    return lambda bench, rng, n: [one(bench, rng) for _ in range(n)]


@dataclass(frozen=True)
class Kind:
    """One kind of harm.

    Attributes:
        title: As the page has it.
        usual: How many trials.
        portion: How many in one process.
        run: Runs some.
    """

    title: str
    usual: int
    portion: int
    run: Callable[[Bench, np.random.Generator, int], list[Outcome]]


KINDS = {
    "kills": Kind("Killed, or asked to end, at a random moment", 500, 50, each(kill)),
    "disks": Kind("No room left after a random number of bytes", 100, 20, each(full_disk)),
    "calls": Kind("One call of the system fails once", 500, 50, each(failing_call)),
    "writers": Kind("Four writers of one name", 20, 5, each(writers)),
    "mixed": Kind("Two unlike commands on one name", 40, 10, each(mixed_writers)),
    "words": Kind("Command lines", 10_000, 250, each(command_line)),
    "forged": Kind("Damaged and forged files", 10_000, 250, each(forged_file)),
    "threads": Kind("A live pipeline in two threads", 50, 25, each(threads)),
    "interrupts": Kind("A live pipeline, interrupted", 50, 25, each(interrupted)),
    "requests": Kind("Requests to the page", 2_000, 2_000, requests),
}


def portion(bench: Bench, kind: Kind, seed: list[int], trials: int) -> list[list[str | int]]:
    """The outcomes of one portion, counted; its process may die of it, and that is an outcome."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(read)
            os.setsid()  # a signal to the harness is no trial
            outcomes = Counter(kind.run(bench, np.random.default_rng(seed), trials))
            if not bench.intact():
                outcomes["the originals", "ORIGINAL CHANGED"] += 1
            with os.fdopen(write, "w") as pipe:
                json.dump([[*k, n] for k, n in outcomes.items()], pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        return [["the portion's process", f"DIED of {status}, seed {seed}", trials]]
    told: list[list[str | int]] = json.loads(text)
    return told


def wrong(found: Mapping[str, Counter[Outcome]]) -> int:
    """Trials that ended as none may: their outcome is told in capitals."""
    return sum(n for c in found.values() for (_, o), n in c.items() if o[:2].isupper())


def faults_page(found: Mapping[str, Counter[Outcome]], command: str) -> str:
    """The page's text."""
    told = []
    for name, count in found.items():
        by_what: dict[str, Counter[str]] = {}
        for (what, outcome), n in sorted(count.items()):
            by_what.setdefault(what, Counter())[outcome] += n
        rows = [
            [what, c.total(), ", ".join(f"{o} {n}" for o, n in c.most_common())]
            for what, c in by_what.items()
        ]
        told.append(f"## {KINDS[name].title}\n\n" + table(["what", "trials", "outcome"], rows))
    total = sum(c.total() for c in found.values())
    sections = "\n\n".join(told)
    return fill("faults", command, sections=sections, total=total, wrong=wrong(found))


def _asked(pairs: list[str]) -> dict[str, int]:
    """`KIND=N` of the command line; all kinds as usual if nothing is asked for."""
    asked = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        if name not in KINDS or not number.isdecimal():
            raise SystemExit(f"expected KIND=N with a kind of {', '.join(KINDS)}, got {pair!r}")
        asked[name] = int(number)
    return asked or {name: kind.usual for name, kind in KINDS.items()}


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every trial ended as it must, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m lab.faults", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/faults"))
    parser.add_argument(
        "--trials", nargs="*", default=[], metavar="KIND=N", help="default: all, hours"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=MEASURED)
    args = parser.parse_args(argv)
    asked = _asked(args.trials)
    torch.set_num_threads(1)  # a forked process has no other threads
    quiet_libraries()
    journal = Journal(args.work / f"journal-{args.seed}.jsonl")
    bench = Bench(args.work.resolve() / f"bench-{os.getpid()}")
    found: dict[str, Counter[Outcome]] = {}
    try:
        for place, (name, kind) in enumerate(KINDS.items()):
            trials = asked.get(name, 0)
            for i in tqdm(range(0, trials, kind.portion), desc=name, disable=not trials):
                key, some = f"{name} {i}", min(kind.portion, trials - i)
                if f"{key} {some}" not in journal:
                    counted = portion(bench, kind, [args.seed, place, i], some)
                    journal.put(f"{key} {some}", counted)
                for what, outcome, n in journal.get(f"{key} {some}"):
                    found.setdefault(name, Counter())[what, outcome] += n
                    if outcome[:2].isupper():
                        print(f"{key}: {what}: {outcome}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(bench.work)
    told = " ".join(f"{name}={n}" for name, n in asked.items() if n)
    text = faults_page(found, f"python -m lab.faults --seed {args.seed} --trials {told}")
    print(f"wrote {write_page(args.out, 'faults', text)}: {text.splitlines()[-1]}")
    return 1 if wrong(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
