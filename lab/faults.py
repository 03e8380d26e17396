"""Kill it, fill its disk, damage its inputs: `python -m erase_sd.bench.faults` writes docs/faults.md.

Every trial is a process of its own, forked from one that has everything imported, so that the harm
falls into the work and not into the start of Python. After each: the final name holds nothing, the
old thing or the new thing, whole; the base is untouched; what was said is one line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from erase_sd.bench.shapes import TOKENIZER, write_folder, write_single
from erase_sd.cli.main import main as run_tool

Trial = Callable[[], list[str]]


def digest(path: Path) -> dict[str, bytes]:
    """Every file of a path and its bytes; a report's seconds and command differ by nature and are left out."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(f.relative_to(path)): f.read_bytes() for f in files if "report" not in f.name}


class Bench:
    """The models, the operations, and what each should leave behind."""

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
        call(
            "erase",
            "--model",
            self.folder,
            "--forget",
            "cat",
            "--rank",
            "1",
            "--images",
            "0",
            "--out",
            work / "e",
        )
        shutil.copy(work / "e" / "erasure.safetensors", self.erasure)
        shutil.rmtree(work / "e")
        call("apply", self.erasure, "--model", self.folder, "--out", work / "erased", "--keep-undo")
        one = self.out / "one"
        file = self.out / "one.safetensors"
        token = ("--tokenizer", TOKENIZER)
        forget = ("--forget", "cat", "--rank", "1", "--images", "0")
        self.operations: dict[str, tuple[list[str | Path], Path]] = {
            "erase, folder": (["erase", "--model", self.folder, *forget, "--out", one], one),
            "erase, single file": (["erase", "--model", self.single, *token, *forget, "--out", file], file),
            "bake, folder": (["apply", self.erasure, "--model", self.folder, "--out", one], one),
            "bake, single file": (
                ["apply", self.erasure, "--model", self.single, *token, "--allow-other-base", "--out", file], file),
            "restore": (["remove", work / "erased", "--out", one], one),
            "export, PEFT": (["export", self.erasure, "--model", self.folder, "--out", file], file),
            "export, kohya": (
                ["export", self.erasure, "--model", self.folder, "--style", "kohya", "--out", file], file),
        }  # fmt: skip
        self.base = digest(self.folder), digest(self.single)

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


def fork(
    arguments: list[str | Path],
    *,
    kill_after: float | None = None,
    limit: int | None = None,
    wait: bool = True,
) -> tuple[int, str]:
    """Run the tool in a child process.

    Args:
        arguments: Its command line.
        kill_after: Seconds until SIGKILL.
        limit: Largest file it may write, in bytes.
        wait: Whether to wait for it; if not, its process id is returned.

    Returns:
        Exit status (−9 if killed) and what it wrote to stderr.
    """
    errors = tempfile.NamedTemporaryFile(mode="r", suffix=".err", delete=False)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(os.open(errors.name, os.O_WRONLY | os.O_TRUNC), 2)
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            status = run_tool([str(a) for a in arguments])
        finally:
            os._exit(status)
    if not wait:
        return pid, errors.name
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    text = errors.read()
    errors.close()
    os.unlink(errors.name)
    return os.waitstatus_to_exitcode(status), text


def judge(bench: Bench, target: Path, new: dict[str, bytes], old: dict[str, bytes] | None) -> str:
    """What stands under the final name: "nothing", "old", "new", or what is wrong."""
    if not bench.intact():
        return "BASE CHANGED"
    if not os.path.lexists(target):
        return "nothing" if old is None else "OLD LOST"
    found = digest(target)
    if found == new:
        return "new"
    return "old" if found == old else "HALF-WRITTEN"


def kills(bench: Bench, trials: int) -> dict[str, Counter[str]]:
    """SIGKILL at random moments, on an empty place and over something that is there."""
    results = {}
    for name, (command, target) in bench.operations.items():
        new, seconds = bench.finished(name)
        for over in (False, True):
            count: Counter[str] = Counter()
            for _ in range(trials):
                bench.clear()
                old = None
                if over:  # something else that this tool wrote, to be replaced
                    fork(command)
                    marker = target / "marker" if target.is_dir() else target
                    marker.write_bytes(b"old")
                    old = digest(target)
                moment = float(bench.rng.uniform(0, 1.1 * seconds))
                fork([*command, "--force"] if over else command, kill_after=moment)
                count[judge(bench, target, new, old)] += 1
            results[name + (", over an old one" if over else "")] = count
    return results


def full_disks(bench: Bench, trials: int) -> dict[str, Counter[str]]:
    """No room after a random number of bytes of a file."""
    results = {}
    for name, (command, target) in bench.operations.items():
        new, _ = bench.finished(name)
        largest = max(len(v) for v in new.values())
        count: Counter[str] = Counter()
        for _ in range(trials):
            bench.clear()
            status, said = fork(command, limit=int(bench.rng.integers(0, largest)))
            what = judge(bench, target, new, None)
            if what == "nothing":
                left = [
                    p.name
                    for p in bench.out.iterdir()
                    if p != bench.erasure and ".erasure." not in p.name
                ]
                what = (
                    "nothing, exit 1"
                    if status == 1 and one_line(said)
                    else f"NOTHING BUT EXIT {status}: {said[-200:]}"
                )
                what = f"LEFT BEHIND {left}" if left else what
            count[what] += 1
        results[name] = count
    return results


def one_line(text: str) -> bool:
    """Whether an error was told in one line of ours, without a traceback."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and lines[-1].startswith("erase-concept") and "Traceback" not in text


def damaged(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Truncations, flipped bits and hostile headers of one safetensors file, without end."""
    while True:
        yield "truncated", data[: int(rng.integers(0, len(data)))]
        flipped = bytearray(data)
        flipped[int(rng.integers(0, min(len(data), 4096)))] ^= 1 << int(rng.integers(8))
        yield "bit flipped in the header", bytes(flipped)
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        names = [n for n in header if n != "__metadata__"]
        victim = names[int(rng.integers(len(names)))]
        other = names[int(rng.integers(len(names)))]
        for kind, change in (
            ("ranges overlap", {"data_offsets": header[other]["data_offsets"]}),
            ("range past the end", {"data_offsets": [0, 1 << 60]}),
            ("negative range", {"data_offsets": [-8, 0]}),
            ("absurd shape", {"shape": [1 << 40, 1 << 40]}),
            ("unknown dtype", {"dtype": "F13"}),
        ):
            if kind == "ranges overlap" and victim == other:
                continue
            text = json.dumps(header | {victim: header[victim] | change}).encode()
            yield kind, struct.pack("<Q", len(text)) + text + data[8 + length :]
        yield "endless header", struct.pack("<Q", (1 << 63) - 1) + data[8:]
        yield "header not UTF-8", data[:8] + b"\xff" * length + data[8 + length :]
        deep = b"[" * 100_000
        yield "header nested deep", struct.pack("<Q", len(deep)) + deep
        yield "not a file of this kind", bytes(rng.integers(0, 256, 5000, dtype=np.uint8))
        yield "empty", b""


def bad_inputs(bench: Bench, trials: int) -> dict[str, Counter[str]]:
    """Damaged erasure files, checkpoints and indices: refused in one line, nothing written."""
    results: dict[str, Counter[str]] = {}
    bad = bench.work / "bad.safetensors"
    apply: list[str | Path] = ["apply", bad, "--model", bench.folder, "--out", bench.out / "x"]
    erase: list[str | Path] = [
        "erase",
        "--model",
        bad,
        "--tokenizer",
        TOKENIZER,
        "--forget",
        "cat",
        "--rank",
        "1",
    ]
    erase += ["--images", "0", "--out", bench.out / "x.safetensors"]
    for what, source, command in (
        ("erasure file", bench.erasure, apply),
        ("single file", bench.single, erase),
    ):
        stream = damaged(source.read_bytes(), bench.rng)
        for _ in range(trials):
            kind, data = next(stream)
            bad.write_bytes(data)
            bench.clear()
            status, said = fork(command)
            left = list(bench.out.iterdir())
            if status == 0 and kind == "bit flipped in the header":
                verdict = "harmless, done"  # a digit of something nobody reads
            elif status in (1, 2) and one_line(said) and not left:
                verdict = "refused in one line"
            else:
                verdict = f"EXIT {status}, left {left}: {said[-200:]}"
            results.setdefault(f"{what}: {kind}", Counter())[verdict] += 1
    return results


def writers(bench: Bench, trials: int) -> dict[str, Counter[str]]:
    """Four processes that write to one name at once."""
    results = {}
    for force in (False, True):
        for name in ("bake, folder", "export, PEFT"):
            command, target = bench.operations[name]
            new, _ = bench.finished(name)
            count: Counter[str] = Counter()
            for _ in range(trials):
                bench.clear()
                children = [
                    fork([*command, "--force"] if force else command, wait=False) for _ in range(4)
                ]
                codes = []
                for pid, errors in children:
                    _, status = os.waitpid(pid, 0)
                    codes.append(os.waitstatus_to_exitcode(status))
                    os.unlink(errors)
                whole = judge(bench, target, new, None) == "new"
                alone = not [p for p in bench.out.iterdir() if p != target]
                won = codes.count(0)
                fine = whole and alone and (won >= 1 if force else won == 1)
                count[
                    "one whole result"
                    if fine
                    else f"WRONG: exits {codes}, {list(bench.out.iterdir())}"
                ] += 1
            results[f"{name}, four writers{', --force' if force else ''}"] = count
    return results


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every trial ended as it must, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench.faults", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/faults"))
    parser.add_argument(
        "--trials",
        type=int,
        default=20,
        help="per operation (7 operations, twice) and kind of fault",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args(argv)
    import torch

    from erase_sd.cli.common import quiet_libraries

    torch.set_num_threads(1)  # a forked process has no other threads
    quiet_libraries()
    bench = Bench(args.work.resolve(), args.seed)
    sections = {
        "Killed at a random moment (SIGKILL)": kills(bench, args.trials),
        "No room left after a random number of bytes": full_disks(bench, args.trials),
        "Damaged and hostile inputs": bad_inputs(bench, 12 * args.trials),
        "Several writers": writers(bench, max(args.trials // 4, 1)),
    }
    bench.clear()
    shutil.rmtree(args.work)
    lines = [
        "# Faults",
        "",
        f"Made by `make faults` (`python -m erase_sd.bench.faults --trials {args.trials} --seed {args.seed}`): counts "
        "of what stood under the final name after each trial. *nothing*, *old* and *new* mean exactly that, byte for "
        "byte. The base model was compared after every trial.",
        "",
    ]
    total = wrong = 0
    for title, results in sections.items():
        lines += [f"## {title}", "", "| what | trials | outcome |", "|---|---|---|"]
        for what, count in results.items():
            total += count.total()
            wrong += sum(n for outcome, n in count.items() if outcome[:1].isupper())
            told = ", ".join(f"{outcome} {n}" for outcome, n in count.most_common())
            lines.append(f"| {what} | {count.total()} | {told} |")
        lines.append("")
    lines += [f"{total} trials, {wrong} wrong."]
    args.out.mkdir(exist_ok=True)
    (args.out / "faults.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
