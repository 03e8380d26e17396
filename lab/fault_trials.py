"""The harm: kills, full disks, damaged inputs, several writers; how each trial ended."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lab.fault_bench import Bench, Command, digest, fork, judge, start
from lab.shapes import TOKENIZER

Outcomes = dict[str, Counter[str]]  # by what was tried


def kills(bench: Bench, trials: int) -> Outcomes:
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


def full_disks(bench: Bench, trials: int) -> Outcomes:
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


def bad_inputs(bench: Bench, trials: int) -> Outcomes:
    """Damaged erasure files, checkpoints and indices: refused in one line, nothing written."""
    results: Outcomes = {}
    bad = bench.work / "bad.safetensors"
    apply: Command = ("apply", bad, "--model", bench.folder, "--out", bench.out / "x")
    tokens, target = ("--tokenizer", TOKENIZER), bench.out / "x.safetensors"
    forget = ("--forget", "cat", "--rank", "1", "--images", "0")
    erase: Command = ("erase", "--model", bad, *tokens, *forget, "--out", target)
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


def writers(bench: Bench, trials: int) -> Outcomes:
    """Four processes that write to one name at once."""
    results = {}
    for force in (False, True):
        for name in ("bake, folder", "export, PEFT"):
            command, target = bench.operations[name]
            new, _ = bench.finished(name)
            count: Counter[str] = Counter()
            for _ in range(trials):
                bench.clear()
                line = [*command, "--force"] if force else command
                children = [start(line) for _ in range(4)]
                codes = [child.end()[0] for child in children]
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
