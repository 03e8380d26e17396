"""A command line run in this process: its exit code, its words, its seconds, what it left."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from erase_sd.cli.main import main as run_tool
from erase_sd.models.tensor_files import stream_tensors
from lab.faults.bench import litter

SLOW, HUNG = 10.0, 60  # seconds of work that no command here needs; seconds until it is broken off
MUCH = 1_500_000  # kB of memory more than before


class Hung(BaseException):
    """It does not end."""


def _hung(*_: object) -> None:
    raise Hung


@dataclass(frozen=True)
class Ran:
    """What a command line did.

    Attributes:
        argv: The command line.
        code: Its exit code, or None if it did not come to one.
        said: Its stderr.
        told: Its stdout.
        seconds: Of this process's work.
        memory: kB that the largest moment took more than any before.
    """

    argv: tuple[str, ...]
    code: int | None
    said: str
    seconds: float
    memory: int
    told: str = ""

    def wrong(self, place: Path, before: set[str]) -> str:
        """What is wrong about how it ended, or "".

        Args:
            place: Folder it could write to.
            before: Names that stood there.
        """
        after = set(os.listdir(place))
        if self.code not in (0, 1, 2):
            return f"EXIT {self.code}"
        if "Traceback" in self.said or ": error: unexpected " in self.said:
            return "NOT EXPECTED"
        if self.seconds > SLOW:
            return f"TOOK {self.seconds:.0f} s"
        if self.memory > MUCH:
            return f"TOOK {self.memory / 1e6:.1f} GB"
        if litter(place):
            return "LEFT BEHIND"
        if self.code and after - before:
            return f"FAILED AND LEFT {sorted(after - before)}"
        errors = [x for x in self.said.splitlines() if ": error: " in x]
        if self.code == 2 and len(errors) != 1 and "usage:" not in self.told or len(errors) > 1:
            return f"SAID {len(errors)} ERRORS"
        if any(not c.isprintable() for line in errors for c in line):
            return "ESCAPES ON THE TERMINAL"
        if not self.code and self.argv[0] != "card" and (unsound := _unsound(place)):
            return f"UNSOUND {unsound}"
        return ""


def inside(argv: list[str]) -> Ran:
    """Run a command line here; what it does to the process's own state is kept small."""
    out, err = io.StringIO(), io.StringIO()
    start, high = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code: int | None = None
    here = os.getcwd()
    signal.signal(signal.SIGALRM, _hung)
    signal.setitimer(signal.ITIMER_REAL, 4 * HUNG)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_tool(argv)
    except Hung:
        err.write("Hung: it does not end\n")
    except BaseException:
        err.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(here)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - high
    seconds = time.process_time() - start
    return Ran(tuple(argv), code, err.getvalue(), seconds, memory, out.getvalue())


def _unsound(place: Path) -> str:
    """A tensor file there that holds values which are not finite; "" if none does.

    What a folder holds besides is copied as it is, for good or bad.
    """
    for path in place.rglob("*.safetensors"):
        if path.parent.name in ("vae", "text_encoder", "safety_checker"):
            continue
        try:
            if not all(bool(torch.isfinite(t).all()) for _, t in stream_tensors(path)):
                return path.name
        except (ValueError, SafetensorError) as error:
            return f"{path.name}: {error}"
    return ""
