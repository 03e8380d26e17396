"""How long things take, at real size: solves, copies, fresh processes, many concepts.

Randomly initialised models of the published shapes stand in for downloads: no step looks at the
numbers. Everything that is compared is timed in the same run.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.algebra.methods import DEFAULT, METHODS, uce, unlink_oblique
from erase_sd.fit.solve import fit
from erase_sd.fit.task import Task
from erase_sd.models.checkpoint import Checkpoint
from erase_sd.text.background import background, vocabulary
from erase_sd.text.encoder import TextEncoder
from lab.shapes import TOKENIZER

GB = 1e9


def median(run: Callable[[], Any], *, repeat: int = 3) -> float:
    """Median seconds of some runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def child(command: list[str], cache: Path) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of a fresh process.

    Raises:
        RuntimeError: If it fails, with the end of what it said.
    """
    environment = os.environ | {"ERASE_SD_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors[-500:]}")
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / GB


def tool(*arguments: str | Path) -> list[str]:
    """The command line of `erase-concept`."""
    return [sys.executable, "-m", "erase_sd.cli.main", *map(str, arguments)]


def uce_by_layer(
    weights: dict[str, Tensor], concepts: Tensor, anchors: Tensor, kept: Tensor
) -> dict[str, Tensor]:
    """UCE as its formula reads: for every layer its own right-hand side and its own inverse.

    `W' = (λ W + Σ W g cᵀ + Σ W p pᵀ) (λ I + Σ c cᵀ + Σ p pᵀ)⁻¹`, float32.

    Source: arXiv 2308.14761, Eq. 7.
    """
    new = {}
    for name, weight in weights.items():
        W = weight.float()
        left, right = 0.5 * W, 0.5 * torch.eye(W.shape[1])
        for c, g in zip(concepts, anchors, strict=True):
            left = left + torch.outer(W @ g, c)
            right = right + torch.outer(c, c)
        for p in kept:
            left = left + torch.outer(W @ p, p)
            right = right + torch.outer(p, p)
        new[name] = left @ torch.linalg.inv(right)
    return new


def solve_times(model: Checkpoint, name: str) -> dict[str, Any]:
    """One concept, twenty retained prompts: UCE by layer and by one map; our default."""
    encoder, weights = TextEncoder.from_checkpoint(model), model.weights()
    attention = {n: w for n, w in weights.items() if w.shape[1] == encoder.width}
    listed = Task(encoder, ("cat",), retain_source="listed", anchor="", tokens="last-subject")
    problem = listed.problem()
    rows = [r.float() for r in (problem.concepts, problem.anchors, problem.kept)]
    own = METHODS[DEFAULT]
    default = Task(encoder, ("cat",), contexts=own.contexts)
    ready = default.problem()  # text encoded, background loaded

    def once(edit: Any) -> dict[str, Tensor]:
        return {n: edit.apply_to_weight(w) for n, w in attention.items()}

    def ours() -> dict[str, Tensor]:
        return once(uce.solve(problem, uce.Options()))

    def theirs() -> dict[str, Tensor]:
        return uce_by_layer(attention, *rows)

    a, b = ours(), theirs()
    result = {
        "model": name,
        "matrices": len(attention),
        "width": encoder.width,
        "kept prompts": len(rows[2]),
        "uce by layer": median(theirs),
        "uce by one map": median(ours, repeat=5),
        "default": median(lambda: once(own.solve(ready, own.options()))),
        "relative difference of the two": max(
            float((a[n].float() - b[n]).norm() / b[n].norm()) for n in a
        ),
        "fit, all of it": median(lambda: fit(encoder, ["cat"], weights=weights)),
    }
    if torch.cuda.is_available():
        result["apply on GPU"] = apply_on_gpu(attention, own.solve(ready, own.options()))
    return result


def apply_on_gpu(weights: dict[str, Tensor], edit: Any) -> float:
    """Median seconds to edit every matrix where it lies, after one run to warm up."""
    moved = [w.cuda() for w in weights.values()]

    def apply() -> None:
        for w in moved:
            edit.apply_to_weight(w)
        torch.cuda.synchronize()

    apply()
    return median(apply)


def scaling(model: Checkpoint) -> list[dict[str, Any]]:
    """One erasure of 1, 10, 100 and 1,000 concepts: time beyond text encoding, and memory."""
    encoder = TextEncoder.from_checkpoint(model)
    weights = model.weights()
    words = vocabulary(encoder, 1000)
    background(encoder)
    rows = []
    for count in (1, 10, 100, 1000):
        task = Task(encoder, tuple((words * (1 + count // max(len(words), 1)))[:count]), near=2.0)
        start = time.perf_counter()
        _ = task.forget_moments, task.retain_moments
        encoding = time.perf_counter() - start
        problem = task.problem()

        def solve(problem: Any = problem) -> None:
            edit = unlink_oblique.solve(problem, unlink_oblique.Options(rank=1))
            for w in weights.values():
                if w.shape[1] == encoder.width:
                    edit.apply_to_weight(w)

        rows.append({
            "concepts": count, "encoding": encoding, "solve and apply": median(solve),
            "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
        })  # fmt: skip
    return rows


def copies(model: Path, work: Path, cache: Path, name: str) -> dict[str, Any]:
    """Checkpoint to checkpoint in a fresh process, beside `cp` of the same files, both synced.

    Args:
        model: Folder or single file.
        work: Where copies are put, on the same disk.
        cache: Of what the tool keeps between runs.
        name: Of the model, for the page.
    """
    out, copy = work / f"out{model.suffix}", work / f"copy{model.suffix}"
    erasure = work / f"{name}.erasure.safetensors"
    extra: list[str | Path] = ["--tokenizer", TOKENIZER] if model.is_file() else []
    base = ["--model", model, "--out", out, *extra]
    sync = f"cp -r {model} {copy} && find {copy} -type f -exec sync {{}} +"
    commands = {
        "cp": ["sh", "-c", sync],
        "apply": tool("apply", erasure, *base),
        "erase": tool("erase", "--forget", "cat", "--images", "0", *base),
    }

    def timed(key: str) -> tuple[float, float]:
        found = child(commands[key], cache)
        if key == "erase":
            shutil.copy(Checkpoint.erasure_file(out), erasure)
        _remove(out, copy, *work.glob("out.*"))
        return found

    _remove(out, copy, *work.glob("out.*"))
    timed("cp")  # warms the page cache for all
    timed("erase")  # makes the background, once per text encoder, and the erasure that is applied
    times: dict[str, list[float]] = {key: [] for key in commands}
    peak = 0.0
    for _ in range(3):
        for key in commands:  # ru_maxrss of children only grows: the frugal ones go first
            seconds, peak = timed(key)
            times[key].append(seconds)
    _remove(erasure)
    size = sum(
        p.stat().st_size for p in ([model] if model.is_file() else model.rglob("*")) if p.is_file()
    )
    middle = {key: sorted(values)[1] for key, values in times.items()}
    return {"model": name, "GB": size / GB, "peak GB": peak} | middle


def _remove(*paths: Path) -> None:
    """Take files and folders away, if they are there."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def cold(folder: Path, work: Path, cache: Path) -> dict[str, float]:
    """Fresh processes: what a user waits for before anything happens, and for small artifacts."""
    erasure = work / "cat.safetensors"
    lora = work / "lora.safetensors"
    child(
        tool("erase", "--model", folder, "--forget", "cat", "--images", "0", "--out", work / "o"),
        cache,
    )
    shutil.copy(work / "o" / "erasure.safetensors", erasure)
    shutil.rmtree(work / "o")
    imports = "import torch; from transformers import CLIPTextModel"

    def seconds(command: list[str]) -> float:
        return sorted(child(command, cache)[0] for _ in range(3))[1]

    result = {
        "importing torch and CLIPTextModel": seconds([sys.executable, "-c", imports]),
        "erase-concept --help": seconds(tool("--help")),
        "erase-concept erase --help": seconds(tool("erase", "--help")),
        "erasure file from prompts": seconds(
            tool("erase", "--model", folder, "--forget", "cat", "--images", "0", "--dry-run")
        ),
        "LoRA from an erasure file": seconds(
            tool("export", erasure, "--model", folder, "--style", "kohya", "--out", lora, "--force")
        ),
    }
    lora.unlink()
    erasure.unlink()
    return result


def peer_time(script: Path, folder: Path, work: Path) -> float:
    """Seconds that a peer's own script takes, called as `python SCRIPT FOLDER OUT`."""
    return child([sys.executable, str(script), str(folder), str(work / "peer")], work)[0]
