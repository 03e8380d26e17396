"""Speed and memory at real size: `python -m erase_sd.bench` writes docs/performance.md.

Randomly initialised models of the published shapes stand in for downloads: no step looks at the
numbers. Everything that is compared is timed in the same run, and given as a ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.bench.shapes import TOKENIZER, write_folder, write_single
from erase_sd.checkpoints import Checkpoint, open_checkpoint

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

    `W' = (λ W + Σ W g cᵀ + Σ W p pᵀ) (λ I + Σ c cᵀ + Σ p pᵀ)⁻¹`, float32. Source: arXiv 2308.14761, Eq. 7.
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
    """One concept, twenty retained prompts: the same UCE edit by layer and by one map; our default."""
    from erase_sd.fitting import Task, fit
    from erase_sd.methods import METHODS

    encoder, weights = model.encoder(), model.weights()
    task = Task(encoder, ("cat",), retain_source="listed", anchor="", tokens="last-subject")
    problem = task.problem()
    concepts, anchors, kept = (
        problem.concepts.float(),
        problem.anchors.float(),
        problem.kept.float(),
    )
    width = encoder.width
    attention = {n: w for n, w in weights.items() if w.shape[1] == width}
    uce = METHODS["uce"].load()

    def ours() -> dict[str, Tensor]:
        edit = uce(problem)
        return {n: edit.weight(w) for n, w in attention.items()}

    def theirs() -> dict[str, Tensor]:
        return uce_by_layer(attention, concepts, anchors, kept)

    a, b = ours(), theirs()
    gap = max(float((a[n].float() - b[n]).norm() / b[n].norm()) for n in a)
    default = Task(encoder, ("cat",), contexts=METHODS["rayleigh"].contexts)
    ready = default.problem()  # text encoded, background loaded
    rayleigh = METHODS["rayleigh"].load()

    def best() -> dict[str, Tensor]:
        edit = rayleigh(ready)
        return {n: edit.weight(w) for n, w in attention.items()}

    result = {
        "model": name,
        "matrices": len(attention),
        "width": width,
        "kept prompts": len(kept),
        "uce by layer": median(theirs),
        "uce by one map": median(ours, repeat=5),
        "default": median(best),
        "relative difference of the two": gap,
        "fit, all of it": median(lambda: fit(encoder, ["cat"], weights=weights)),
    }
    if torch.cuda.is_available():
        on_gpu = {n: w.cuda() for n, w in attention.items()}
        edit = rayleigh(ready)

        def apply() -> None:
            for w in on_gpu.values():
                edit.weight(w)
            torch.cuda.synchronize()

        apply()
        result["apply on GPU"] = median(apply)
    return result


def scaling(model: Checkpoint) -> list[dict[str, Any]]:
    """One erasure of 1, 10, 100 and 1,000 concepts: time beyond text encoding, and memory."""
    from erase_sd.background import background, vocabulary
    from erase_sd.fitting import Task
    from erase_sd.methods import METHODS

    encoder = model.encoder()
    weights = model.weights()
    words = vocabulary(encoder, 1000)
    background(encoder)
    rows = []
    for count in (1, 10, 100, 1000):
        task = Task(encoder, tuple((words * (1 + count // max(len(words), 1)))[:count]), near=2.0)
        start = time.perf_counter()
        _ = task.gone, task.kept
        encoding = time.perf_counter() - start
        problem = task.problem()

        def solve(problem: Any = problem) -> None:
            edit = METHODS["unlink-oblique"].load()(problem, rank=1)
            for w in weights.values():
                if w.shape[1] == encoder.width:
                    edit.weight(w)

        rows.append({
            "concepts": count, "encoding": encoding, "solve and apply": median(solve),
            "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
        })  # fmt: skip
    return rows


def copies(model: Path, work: Path, cache: Path, name: str) -> dict[str, Any]:
    """Checkpoint to checkpoint in a fresh process, beside `cp` of the same files, both synced."""
    out, copy = work / f"out{model.suffix}", work / f"copy{model.suffix}"
    erasure = work / f"{name}.erasure.safetensors"
    extra: list[str | Path] = ["--tokenizer", TOKENIZER] if model.is_file() else []

    def clean() -> None:
        for path in (out, copy):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in work.glob("out.*"):
            path.unlink()

    def cp() -> tuple[float, float]:
        return child(
            ["sh", "-c", f"cp -r {model} {copy} && find {copy} -type f -exec sync {{}} +"], cache
        )

    result: dict[str, Any] = {"model": name}
    size = sum(
        p.stat().st_size for p in ([model] if model.is_file() else model.rglob("*")) if p.is_file()
    )
    result["GB"] = size / GB
    clean()
    cp()  # warm the page cache for both
    clean()
    # ru_maxrss of children only grows: the frugal ones go first.
    times: dict[str, list[float]] = {"cp": [], "apply": [], "erase": []}
    clean()
    tool_erase = tool(
        "erase", "--model", model, "--forget", "cat", "--images", "0", "--out", out, *extra
    )
    child(tool_erase, cache)  # makes the background, once per text encoder
    made = Checkpoint.erasure_file(out)
    shutil.copy(made, erasure)
    clean()
    for _ in range(3):
        times["cp"].append(cp()[0])
        clean()
        seconds, _ = child(tool("apply", erasure, "--model", model, "--out", out, *extra), cache)
        times["apply"].append(seconds)
        clean()
        seconds, peak = child(tool_erase, cache)
        times["erase"].append(seconds)
        result["peak GB"] = peak
        clean()
    for key, values in times.items():
        result[key] = sorted(values)[1]
    erasure.unlink()
    return result


def cold(folder: Path, work: Path, cache: Path) -> dict[str, float]:
    """Fresh processes: what a user waits for before anything happens, and for the small artifacts."""
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


def markdown(r: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Speed and memory at real size",
        "",
        f"Made by `make bench` (`python -m erase_sd.bench`) on {r['machine']}; models of the published shapes with "
        "random weights, fp16. Compare ratios: each table is of one run.",
        "",
        "## Solve and apply",
        "",
        "One concept, the retain prompts of the method, text already encoded. The first two are one formula: layer by",
        "layer in float32, as published, and once for all layers in float64; they differ by the former's inverse.",
        "",
        "| model | matrices | width | UCE layer by layer | the same by one map | ratio | largest difference "
        "| our default | fit, text included |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in r["solve"]:
        ratio = s["uce by layer"] / s["uce by one map"]
        lines.append(
            f"| {s['model']} | {s['matrices']} | {s['width']} | {s['uce by layer']:.2f} s "
            f"| {s['uce by one map']:.3f} s | {ratio:.0f} x | {s['relative difference of the two']:.1e} "
            f"| {s['default']:.2f} s | {s['fit, all of it']:.2f} s |"
        )
    if "apply on GPU" in r["solve"][0]:
        lines += ["", f"Applying it on the GPU takes {r['solve'][0]['apply on GPU']:.4f} s."]
    lines += [
        "",
        "## Checkpoint to checkpoint",
        "",
        "Fresh processes, written and synced; medians of three.",
        "",
    ]
    lines += [
        "| model | size | `cp` | `apply` | over 1.3 x `cp` | `erase` | over 1.3 x `cp` | peak memory |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for c in r["copies"]:
        over = [c[k] - 1.3 * c["cp"] for k in ("apply", "erase")]
        lines.append(
            f"| {c['model']} | {c['GB']:.1f} GB | {c['cp']:.1f} s | {c['apply']:.1f} s | {over[0]:+.1f} s "
            f"| {c['erase']:.1f} s | {over[1]:+.1f} s | {c['peak GB']:.2f} GB |"
        )
    lines += ["", "## From nothing", "", "| a fresh process | seconds |", "|---|---|"]
    lines += [f"| {k} | {v:.2f} |" for k, v in r["cold"].items()]
    lines += ["", "## Many concepts in one erasure (SD 1.4)", ""]
    lines += [
        "| concepts | encoding | solve and apply | of one concept | peak memory so far |",
        "|---|---|---|---|---|",
    ]
    one = r["scaling"][0]["solve and apply"]
    for s in r["scaling"]:
        lines.append(
            f"| {s['concepts']} | {s['encoding']:.1f} s | {s['solve and apply']:.2f} s "
            f"| {s['solve and apply'] / one:.2f} x | {s['peak GB']:.2f} GB |"
        )
    lines += ["", "## Goals", "", "| what | goal | reached | |", "|---|---|---|---|"]
    for what, goal, reached, met in r["goals"]:
        lines.append(f"| {what} | {goal} | {reached} | {'met' if met else '**missed**'} |")
    return "\n".join(lines) + "\n"


def goals(r: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What was aimed at, and what came of it."""
    solve, sd = r["solve"][0], r["copies"][0]
    ratio = solve["uce by layer"] / solve["uce by one map"]
    many = r["scaling"][-1]["solve and apply"] / r["scaling"][0]["solve and apply"]
    grown = r["scaling"][-1]["peak GB"] - r["scaling"][0]["peak GB"]
    wait = max(r["cold"]["erase-concept --help"], r["cold"]["erase-concept erase --help"])
    rows = [("UCE's solve, SD 1.4", "at least 20 x faster", f"{ratio:.0f} x", ratio >= 20)]
    for c in r["copies"]:
        over = c["erase"] - 1.3 * c["cp"]
        rows.append(
            (
                f"checkpoint to checkpoint, {c['model']}",
                "1.3 x cp + 4 s",
                f"1.3 x cp {over:+.1f} s",
                over <= 4,
            )
        )
    rows += [
        ("peak memory, SD 1.4", "below 1 GB", f"{sd['peak GB']:.2f} GB", sd["peak GB"] < 1),
        ("1,000 concepts beyond text encoding", "at most 3 x of one", f"{many:.2f} x", many <= 3),
        ("memory from 1 to 1,000 concepts", "flat", f"{grown:+.2f} GB", grown < 0.1),
        ("`--help`", "below 0.3 s", f"{wait:.2f} s", wait < 0.3),
    ]
    return rows


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every goal is met, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.bench", description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/bench"),
        help="needs 25 GB; resumes; emptied at the end",
    )
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument(
        "--small", action="store_true", help="narrow models: try the measurement itself"
    )
    parser.add_argument(
        "--peer", type=Path, help="a peer's script to time: python SCRIPT FOLDER OUT"
    )
    args = parser.parse_args(argv)
    from erase_sd.cli.common import quiet_libraries

    quiet_libraries()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    cache = work / "cache"
    os.environ["ERASE_SD_CACHE"] = str(cache)
    journal = work / "stages.json"
    done: dict[str, Any] = json.loads(journal.read_text()) if journal.exists() else {}

    def stage(name: str, measure: Callable[[], Any]) -> Any:
        """Measure, unless an interrupted run already did."""
        if name not in done:
            print(f"{name} ...", file=sys.stderr, flush=True)
            done[name] = measure()
            journal.write_text(json.dumps(done))
        return done[name]

    sd, xl = work / "sd14", work / "sdxl.safetensors"

    def models() -> None:
        write_folder(sd, "sd1", small=args.small)
        write_single(xl, "sdxl", small=args.small)

    def solve(name: str) -> dict[str, Any]:
        return solve_times(
            open_checkpoint(sd)
            if name == "SD 1.4"
            else open_checkpoint(xl, tokenizer=str(TOKENIZER)),
            name,
        )

    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")
    }
    stage("models", models)
    result["copies"] = [
        stage("copying SD 1.4", lambda: copies(sd, work, cache, "SD 1.4 folder")),
        stage("copying SDXL", lambda: copies(xl, work, cache, "SDXL single file")),
    ]
    result["cold"] = stage("cold starts", lambda: cold(sd, work, cache))
    result["scaling"] = stage("many concepts", lambda: scaling(open_checkpoint(sd)))
    result["solve"] = [
        stage(f"solving {name}", partial(solve, name)) for name in ("SD 1.4", "SDXL")
    ]
    if args.peer:
        result["cold"]["a peer's script"] = peer_time(args.peer, sd, work)
    result["goals"] = goals(result)
    shutil.rmtree(work)
    args.out.mkdir(exist_ok=True)
    (args.out / "performance.md").write_text(markdown(result))
    (args.out / "performance.json").write_text(json.dumps(result, indent=1))
    for what, goal, reached, met in result["goals"]:
        print(f"{'ok    ' if met else 'MISSED'} {what}: {reached} (goal: {goal})")
    return 0 if all(g[3] for g in result["goals"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
