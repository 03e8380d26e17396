"""What is harmed: models, operations on them, and a judge of what is left.

Every trial is a process of its own, forked from one that has everything imported, so that the harm
falls into the work and not into the start of Python.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from erase_sd.cli.main import main as run_tool
from lab.shapes import TOKENIZER, write_folder, write_single

Command = Sequence[str | Path]


OURS = re.compile(r"\.erase-sd-[0-9a-f]{16}\.(part|commit)")

Outcome = tuple[str, str]  # what was tried, and how it ended: in capitals if as it must not


def digest(path: Path) -> dict[str, bytes]:
    """Every file of a path and its bytes; of reports, whose seconds differ by nature, the names."""
    if path.is_file():
        return {".": path.read_bytes()}
    found = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(OURS.fullmatch(part) for part in name.parts):
            told = file.read_bytes()
            found[str(name)] = b"" if "report" in file.name and told != OLD else told
    return found


def litter(path: Path) -> list[str]:
    """What lies around, in a folder and all inside."""
    return [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if OURS.fullmatch(p.name)]


OLD = b"old"
TOUCHES = "touches:"
_FORGET = ("--forget", "cat", "--rank", "1", "--images", "0")


class Bench:
    """The models, the operations, and what each should leave behind.

    Args:
        work: Folder for all of it; emptied first.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        os.environ["ERASE_SD_CACHE"] = str(work / "cache")
        self.temp = work / "temp"
        self.temp.mkdir()
        tempfile.tempdir = str(self.temp)  # what a command leaves there is seen
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
        self._finished: dict[str, tuple[dict[str, bytes], float, int]] = {}
        undo = work / "erased.undo.safetensors"
        self.originals = (self.folder, self.single, self.erasure, work / "erased", undo)
        self.base = [digest(path) for path in self.originals]
        self._marks = self._stats()

    def _operations(self) -> dict[str, Command]:
        """What is harmed: command lines; all write into `out`."""
        one, file = self.out / "one", self.out / "one.safetensors"
        folder = ("--model", self.folder, "--out")
        single = ("--model", self.single, "--tokenizer", TOKENIZER, "--out", file)
        other = "--allow-other-base"
        return {
            "erase, folder": ("erase", *_FORGET, *folder, one),
            "erase, single file": ("erase", *_FORGET, *single, "--keep-undo"),
            "bake, folder": ("apply", self.erasure, *folder, one, "--keep-undo"),
            "bake, single file": ("apply", self.erasure, other, *single),
            "restore": ("remove", self.work / "erased", "--out", one),
            "export, PEFT": ("export", self.erasure, *folder, file),
            "export, kohya": ("export", self.erasure, "--style", "kohya", *folder, file),
        }

    def clear(self) -> dict[str, bytes]:
        """Empty the output folder; the digest of nothing."""
        shutil.rmtree(self.out)
        self.out.mkdir()
        return {}

    @staticmethod
    def remove(path: Path) -> None:
        """A file or a folder."""
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def finished(self, name: str) -> tuple[dict[str, bytes], float, int]:
        """What an operation leaves in the output folder if undisturbed, its seconds and touches.

        A touch is a call of the system that names the output folder.
        """
        if name not in self._finished:
            self.clear()
            begun = time.perf_counter()
            status, said = fork(self.operations[name], run=lambda a: struck(a, self.out))
            seconds = time.perf_counter() - begun
            if status:
                raise RuntimeError(f"{name} fails even undisturbed: {said[-300:]}")
            touches = int(said.rpartition(TOUCHES)[2])
            self._finished[name] = digest(self.out), seconds, touches
        return self._finished[name]

    def age(self, name: str) -> dict[str, bytes]:
        """Put something in the output folder that an operation replaces; its digest."""
        kept = self.work / "aged" / name
        if not kept.exists():
            self.finished(name)
            self.clear()
            fork(self.operations[name])
            shutil.copytree(self.out, kept)
            if (kept / "one").is_dir():  # what a restored folder lacks, and --force looks for
                (kept / "one" / "erasure.json").touch()
            for path in [p for p in kept.rglob("*") if p.is_file()]:
                path.write_bytes(OLD)
        shutil.rmtree(self.out)
        shutil.copytree(kept, self.out)
        return digest(self.out)

    def intact(self) -> bool:
        """Whether the originals are what they were, byte for byte."""
        return self.base == [digest(path) for path in self.originals]

    def _stats(self) -> list[tuple[str, int, int, int]]:
        files = [p for o in self.originals for p in (o, *sorted(o.rglob("*"))) if p.is_file()]
        found = [(str(p), p.stat()) for p in files]
        return [(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found]

    def spoilt(self) -> str:
        """What is wrong around the output folder after a trial; "" if nothing is."""
        if self._stats() != self._marks:
            return "ORIGINAL CHANGED"
        if left := [p.name for p in self.temp.iterdir()]:
            for name in left:
                self.remove(self.temp / name)
            return f"LEFT BEHIND {left} among temporary files"
        return ""


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
        errors: File without a name that its stderr goes to.
    """

    pid: int
    errors: BinaryIO

    def end(self) -> tuple[int, str]:
        """Wait for it; its exit status (-9 if killed) and what it wrote to stderr."""
        _, status = os.waitpid(self.pid, 0)
        with self.errors:
            self.errors.seek(0)
            text = self.errors.read().decode("utf-8", errors="replace")
        return os.waitstatus_to_exitcode(status), text


def start(
    arguments: Command,
    *,
    limit: int | None = None,
    run: Callable[[list[str]], int] = run_tool,
) -> Child:
    """Run the tool in a child process.

    Args:
        arguments: Its command line.
        limit: Largest file it may write, in bytes.
        run: What runs it.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            status = run([str(a) for a in arguments])
        finally:
            os._exit(status)
    return Child(pid, errors)


def struck(line: list[str], place: Path, nth: int = 0, sign: int = signal.SIGKILL) -> int:
    """Run the tool here until its nth touch of a place, and send this process a signal then.

    Python tells of each call of the system that names a file before it is made; what libraries
    write by themselves falls between two of them. Without a signal the touches are counted, and
    told last on stderr.
    """
    count, name = 0, str(place)

    def told(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event.startswith(("open", "os.")) and any(name in str(a) for a in args):
            count += 1
            if count == nth:
                os.kill(os.getpid(), sign)

    sys.addaudithook(told)
    status = run_tool(line)
    if not nth:
        print(f"{TOUCHES} {count}", file=sys.stderr, flush=True)
    return status


def fork(
    arguments: Command,
    *,
    after: float | None = None,
    sign: int = signal.SIGKILL,
    limit: int | None = None,
    run: Callable[[list[str]], int] = run_tool,
) -> tuple[int, str]:
    """Run the tool in a child process to its end, or to ours.

    Args:
        arguments: Its command line.
        after: Seconds until a signal.
        sign: Which.
        limit: Largest file it may write, in bytes.
        run: What runs it.

    Returns:
        Exit status (-9 if killed) and what it wrote to stderr.
    """
    child = start(arguments, limit=limit, run=run)
    if after is not None:
        time.sleep(after)
        os.kill(child.pid, sign)  # not yet waited for, so the number is still its own
    return child.end()


def one_line(text: str) -> bool:
    """Whether an error was told in one line of ours, without a traceback."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and lines[-1].startswith("erase-concept") and "Traceback" not in text


def judge(place: Path, new: dict[str, bytes], old: dict[str, bytes]) -> str:
    """What stands in a place: "nothing", "old", "new", or what is wrong."""
    found = digest(place)
    if found == new:
        return "new"
    if found == old:
        return "old" if old else "nothing"
    if not found:
        return "OLD LOST"
    return f"MIXED: {sorted(k for k in found if found[k] not in (new.get(k), old.get(k)))[:3]}"
