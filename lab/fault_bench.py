"""What is harmed: models, operations on them, and a judge of what is left.

Every trial is a process of its own, forked from one that has everything imported, so that the harm
falls into the work and not into the start of Python.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from erase_sd.cli.main import main as run_tool
from lab.shapes import TOKENIZER, write_folder, write_single

Command = Sequence[str | Path]


def digest(path: Path) -> dict[str, bytes]:
    """Every file of a path and its bytes, without reports: their seconds differ by nature."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(f.relative_to(path)): f.read_bytes() for f in files if "report" not in f.name}


_FORGET = ("--forget", "cat", "--rank", "1", "--images", "0")


class Bench:
    """The models, the operations, and what each should leave behind.

    Args:
        work: Folder for all of it; emptied first.
        seed: Of the moments and places of harm.
    """

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.rng = work, np.random.default_rng(seed)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        os.environ["ERASE_SD_CACHE"] = str(work / "cache")
        self.folder = write_folder(work / "base", "sd1", small=True)
        self.single = write_single(work / "base.safetensors", "sd1", small=True)
        self.erasure = work / "cat.safetensors"
        self.out = work / "out"
        self.out.mkdir()
        first = work / "e"
        call("erase", "--model", self.folder, *_FORGET, "--out", first)
        shutil.copy(first / "erasure.safetensors", self.erasure)
        shutil.rmtree(first)
        call("apply", self.erasure, "--model", self.folder, "--out", work / "erased", "--keep-undo")
        self.operations = self._operations()
        self.base = digest(self.folder), digest(self.single)

    def _operations(self) -> dict[str, tuple[Command, Path]]:
        """What is harmed: command lines, and the name that each writes to."""
        one, file = self.out / "one", self.out / "one.safetensors"
        folder = ("--model", self.folder, "--out")
        single = ("--model", self.single, "--tokenizer", TOKENIZER, "--out", file)
        other = "--allow-other-base"
        return {
            "erase, folder": (("erase", *_FORGET, *folder, one), one),
            "erase, single file": (("erase", *_FORGET, *single), file),
            "bake, folder": (("apply", self.erasure, *folder, one), one),
            "bake, single file": (("apply", self.erasure, other, *single), file),
            "restore": (("remove", self.work / "erased", "--out", one), one),
            "export, PEFT": (("export", self.erasure, *folder, file), file),
            "export, kohya": (("export", self.erasure, "--style", "kohya", *folder, file), file),
        }

    def clear(self) -> None:
        """Empty the output folder."""
        shutil.rmtree(self.out)
        self.out.mkdir()

    def finished(self, name: str) -> tuple[dict[str, bytes], float]:
        """What an operation leaves when nothing goes wrong, and how long it takes."""
        command, target = self.operations[name]
        self.clear()
        start = time.perf_counter()
        if fork(command)[0]:
            raise RuntimeError(f"{name} fails even undisturbed")
        return digest(target), time.perf_counter() - start

    def intact(self) -> bool:
        """Whether the base models are what they were."""
        return self.base == (digest(self.folder), digest(self.single))


def call(*arguments: str | Path) -> None:
    """Run the tool here, silently."""
    with contextlib.redirect_stdout(io.StringIO()):
        if run_tool([str(a) for a in arguments]):
            raise RuntimeError(f"{arguments} failed")


@dataclass(frozen=True)
class Child:
    """A process that runs the tool.

    Attributes:
        pid: Its number.
        errors: File that its stderr goes to.
    """

    pid: int
    errors: Path

    def end(self) -> tuple[int, str]:
        """Wait for it; its exit status (-9 if killed) and what it wrote to stderr."""
        _, status = os.waitpid(self.pid, 0)
        text = self.errors.read_text(encoding="utf-8", errors="replace")
        self.errors.unlink()
        return os.waitstatus_to_exitcode(status), text


def start(arguments: Command, *, limit: int | None = None) -> Child:
    """Run the tool in a child process.

    Args:
        arguments: Its command line.
        limit: Largest file it may write, in bytes.
    """
    handle, name = tempfile.mkstemp(suffix=".err")
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(handle, 2)
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            status = run_tool([str(a) for a in arguments])
        finally:
            os._exit(status)
    os.close(handle)
    return Child(pid, Path(name))


def fork(
    arguments: Command, *, kill_after: float | None = None, limit: int | None = None
) -> tuple[int, str]:
    """Run the tool in a child process to its end, or to ours.

    Args:
        arguments: Its command line.
        kill_after: Seconds until SIGKILL.
        limit: Largest file it may write, in bytes.

    Returns:
        Exit status (-9 if killed) and what it wrote to stderr.
    """
    child = start(arguments, limit=limit)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
    return child.end()


class Intact(Protocol):
    """Something whose base can be asked for."""

    def intact(self) -> bool:
        """Whether the base is what it was."""
        ...


def judge(bench: Intact, target: Path, new: dict[str, bytes], old: dict[str, bytes] | None) -> str:
    """What stands under the final name: "nothing", "old", "new", or what is wrong."""
    if not bench.intact():
        return "BASE CHANGED"
    if not os.path.lexists(target):
        return "nothing" if old is None else "OLD LOST"
    found = digest(target)
    if found == new:
        return "new"
    return "old" if found == old else "HALF-WRITTEN"
