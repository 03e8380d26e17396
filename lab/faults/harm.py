"""Processes that are killed, ended, starved of disk, or not alone; one trial a function."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from erase_sd.cli.main import main as run_tool
from lab.faults.bench import (
    Bench,
    Command,
    Outcome,
    digest,
    fork,
    judge,
    litter,
    one_line,
    start,
    struck,
)

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def kill(bench: Bench, rng: np.random.Generator) -> Outcome:
    """A signal at a random moment, or at a random touch of the output folder.

    Then what is left before the next run, and after it.
    """
    name = str(rng.choice(list(bench.operations)))
    new, seconds, touches = bench.finished(name)
    over = bool(rng.integers(2))
    old = bench.age(name) if over else bench.clear()
    sign = SIGNALS[int(rng.integers(len(SIGNALS)))]
    line = [*bench.operations[name], *(["--force"] if over else [])]
    if rng.random() < 0.5:
        status, said = fork(line, after=float(rng.uniform(0, 1.1 * seconds)), sign=sign)
    else:
        nth = int(rng.integers(1, touches + 1))
        status, said = fork(line, run=lambda a: struck(a, bench.out, nth, sign))
    what = f"{name}{', over an old one' if over else ''}, {sign.name}"
    left = litter(bench.out)
    found = judge(bench.out, new, old)
    if sign != signal.SIGKILL:
        if left:
            return what, f"LEFT BEHIND {left}"
        if status not in (0, 128 + sign, -sign) or "Traceback" in said:
            return what, f"EXIT {status}: {said[-200:]}"
        return what, found
    # A killed writer cannot clean up. The next run in that place does, and decides what was begun.
    if found.startswith("MIXED") and not any(n.endswith(".commit") for n in left):
        return what, found
    again: Command = [*bench.operations[name], "--force"]
    if name == "restore" and found == "new":  # not replaced: it is no erased folder any more
        again = ("doctor", bench.out, "--remove")
    status, said = fork(again)
    after = judge(bench.out, new, old)
    if status or after != "new" or litter(bench.out):
        return what, f"NEXT RUN: exit {status}, {after}, {litter(bench.out)}, {said[-200:]}"
    return what, "finished by the next run" if found.startswith("MIXED") else found


def full_disk(bench: Bench, rng: np.random.Generator) -> Outcome:
    """No room after a random number of bytes of a file."""
    name = str(rng.choice(list(bench.operations)))
    new, *_ = bench.finished(name)
    over = bool(rng.integers(2))
    old = bench.age(name) if over else bench.clear()
    most = max(len(v) for v in new.values())
    line = [*bench.operations[name], *(["--force"] if over else [])]
    status, said = fork(line, limit=int(rng.integers(0, most)))
    found = judge(bench.out, new, old)
    if litter(bench.out):
        return name, f"LEFT BEHIND {litter(bench.out)}"
    if found != ("old" if over else "nothing") or status != 1 or not one_line(said):
        return name, f"EXIT {status}, {found}: {said[-200:]}"
    return name, f"{found}, exit 1"


CALLS = ("rename", "open", "mkdir", "fsync", "link", "scandir", "chmod", "unlink", "rmdir", "stat")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES)


def _failing(line: list[str], call: str, nth: int, number: int, place: Path) -> int:
    """Run the tool with one call of the system failing once, counted where it writes."""
    true: Callable[..., Any] = getattr(os, call)
    count = 0

    def failing(*args: Any, **more: Any) -> Any:
        nonlocal count
        if args and str(place) in str(args[0]) or (args and isinstance(args[0], int)):
            count += 1
            if count == nth:
                raise OSError(number, os.strerror(number), str(args[0]))
        return true(*args, **more)

    setattr(os, call, failing)
    return run_tool(line)


def failing_call(bench: Bench, rng: np.random.Generator) -> Outcome:
    """One call of the system fails once, with one of three errors."""
    name = str(rng.choice(list(bench.operations)))
    new, *_ = bench.finished(name)
    over = bool(rng.integers(2))
    old = bench.age(name) if over else bench.clear()
    call, number = str(rng.choice(CALLS)), int(rng.choice(ERRORS))
    line = [str(a) for a in (*bench.operations[name], *(["--force"] if over else []))]
    nth = int(rng.integers(1, 25))
    status, said = start(line, run=lambda a: _failing(a, call, nth, number, bench.out)).end()
    found, left = judge(bench.out, new, old), litter(bench.out)
    what = f"{call} fails once"
    if status == 0 and found == "new":
        if left and "doctor" not in said:
            return what, f"LEFT BEHIND in silence {left}, {name}, {nth}"
        return what, "new" + (", with a warning" if "warning" in said or left or said else "")
    if status in (1, 2) and found == ("old" if over else "nothing"):
        if left and "could not be removed" not in said:
            return what, f"LEFT BEHIND in silence {left}, {name}, {nth}"
        return what, f"{found}, exit {status}" if one_line(said) else f"NOT ONE LINE: {said[-200:]}"
    if found.startswith("MIXED") and any(n.endswith(".commit") for n in left):
        return what, "left for the next run to finish"
    return what, f"EXIT {status}, {found}, {name}, {nth}, {number}: {said[-300:]}"


def writers(bench: Bench, rng: np.random.Generator) -> Outcome:
    """Four processes that write to one name at once."""
    name = str(rng.choice(list(bench.operations)))
    new, *_ = bench.finished(name)
    force = bool(rng.integers(2))
    bench.clear()
    line = [*bench.operations[name], *(["--force"] if force else [])]
    children = [start(line) for _ in range(4)]
    codes = [child.end()[0] for child in children]
    won = codes.count(0)
    whole = judge(bench.out, new, {}) == "new" and not litter(bench.out)
    what = f"{name}, four writers{', --force' if force else ''}"
    # A restored folder is none of ours any more: --force does not replace it.
    least, most = (1 if name == "restore" else 4, 4) if force else (1, 1)
    if whole and least <= won <= most and set(codes) <= {0, 2}:
        return what, "one whole result"
    return what, f"WRONG: exits {codes}, {litter(bench.out)}"


def mixed_writers(bench: Bench, rng: np.random.Generator) -> Outcome:
    """Two commands of unlike results on one name: what stands is of one of them."""
    pairs = [
        ("erase, folder", "bake, folder"),
        ("erase, single file", "bake, single file"),
        ("erase, folder", "restore"),
    ]
    pair = pairs[int(rng.integers(len(pairs)))]
    bench.clear()
    wholes = [bench.finished(name)[0] for name in pair]
    bench.clear()
    children = [start([*bench.operations[name], "--force"]) for name in pair]
    codes = [child.end() for child in children]
    what = " beside ".join(pair)
    # What is beside the last one's own (an undo file, say) may stay, but never with half a result.
    found, left = digest(bench.out), litter(bench.out)
    if any(all(found.get(k) == v for k, v in whole.items()) for whole in wholes) and not left:
        return what, "one whole result"
    return what, f"MIXED: {[c for c, _ in codes]}, {sorted(found)}, {left}"
