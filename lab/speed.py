"""Speed and memory at real size; 25 GB, resumes."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from erase_sd.cli.common import quiet_libraries
from erase_sd.models.opening import open_checkpoint
from lab.journal import Journal
from lab.page import MEASURED, Goal, fill, goal_table, table, tell, write_page
from lab.shapes import TOKENIZER, write_folder, write_single
from lab.timing import cold, copies, peer_time, scaling, solve_times


def goals(r: Mapping[str, Any]) -> list[Goal]:
    """What was aimed at, and what came of it."""
    solve, sd = r["solve"][0], r["copies"][0]
    ratio = solve["uce by layer"] / solve["uce by one map"]
    one, many = r["scaling"][0], r["scaling"][-1]
    times = many["solve and apply"] / one["solve and apply"]
    grown = many["peak GB"] - one["peak GB"]
    wait = max(r["cold"]["erase-concept --help"], r["cold"]["erase-concept erase --help"])
    found = [Goal("UCE's solve, SD 1.4", "at least 20 x faster", f"{ratio:.0f} x", ratio >= 20)]
    for c in r["copies"]:
        over = c["erase"] - 1.3 * c["cp"]
        what = f"checkpoint to checkpoint, {c['model']}"
        found.append(Goal(what, "1.3 x cp + 4 s", f"1.3 x cp {over:+.1f} s", over <= 4))
    return [
        *found,
        Goal("peak memory, SD 1.4", "below 1 GB", f"{sd['peak GB']:.2f} GB", sd["peak GB"] < 1),
        Goal(
            "1,000 concepts beyond text encoding",
            "at most 3 x of one",
            f"{times:.2f} x",
            times <= 3,
        ),
        Goal("memory from 1 to 1,000 concepts", "flat", f"{grown:+.2f} GB", grown < 0.1),
        Goal("`--help`", "below 0.3 s", f"{wait:.2f} s", wait < 0.3),
    ]


def solve_table(rows: list[dict[str, Any]]) -> str:
    """UCE twice, and our default."""
    head = ["model", "matrices", "width", "UCE layer by layer", "the same by one map", "ratio",
            "largest difference", "our default", "fit, text included"]  # fmt: skip
    cells = [
        [
            s["model"],
            s["matrices"],
            s["width"],
            f"{s['uce by layer']:.2f} s",
            f"{s['uce by one map']:.3f} s",
            f"{s['uce by layer'] / s['uce by one map']:.0f} x",
            f"{s['relative difference of the two']:.1e}",
            f"{s['default']:.2f} s",
            f"{s['fit, all of it']:.2f} s",
        ]
        for s in rows
    ]
    return table(head, cells)


def copy_table(rows: list[dict[str, Any]]) -> str:
    """Checkpoint to checkpoint, beside `cp`."""
    head = ["model", "size", "`cp`", "`apply`", "over 1.3 x `cp`", "`erase`", "over 1.3 x `cp`",
            "peak memory"]  # fmt: skip
    cells = []
    for c in rows:
        over = {k: f"{c[k] - 1.3 * c['cp']:+.1f} s" for k in ("apply", "erase")}
        seconds = {k: f"{c[k]:.1f} s" for k in ("cp", "apply", "erase")}
        cells.append([c["model"], f"{c['GB']:.1f} GB", seconds["cp"], seconds["apply"],
        over["apply"],
                      seconds["erase"], over["erase"], f"{c['peak GB']:.2f} GB"])  # fmt: skip
    return table(head, cells)


def scaling_table(rows: list[dict[str, Any]]) -> str:
    """One erasure of more and more concepts."""
    one = rows[0]["solve and apply"]
    cells = [
        [
            s["concepts"],
            f"{s['encoding']:.1f} s",
            f"{s['solve and apply']:.2f} s",
            f"{s['solve and apply'] / one:.2f} x",
            f"{s['peak GB']:.2f} GB",
        ]
        for s in rows
    ]
    return table(
        ["concepts", "encoding", "solve and apply", "of one concept", "peak memory so far"], cells
    )


def speed_page(r: Mapping[str, Any], command: str) -> str:
    """The page's text."""
    gpu = r["solve"][0].get("apply on GPU")
    return fill(
        "performance",
        command,
        machine=r["machine"],
        solve=solve_table(r["solve"]),
        on_gpu="" if gpu is None else f"\nApplying it on the GPU takes {gpu:.4f} s.",
        copies=copy_table(r["copies"]),
        cold=table(["a fresh process", "seconds"], [[k, f"{v:.2f}"] for k, v in r["cold"].items()]),
        scaling=scaling_table(r["scaling"]),
        goals=goal_table(goals(r)),
    )


def measure(work: Path, *, small: bool, peer: Path | None) -> dict[str, Any]:
    """Everything, stage by stage; what an interrupted run measured is kept.

    Args:
        work: Holds models, copies and the journal.
        small: Narrow models.
        peer: A peer's script.
    """
    cache = work / "cache"
    os.environ["ERASE_SD_CACHE"] = str(cache)
    journal = Journal(work / "stages.jsonl")

    def stage(name: str, run: Callable[[], Any]) -> Any:
        if name not in journal:
            print(f"{name} ...", file=sys.stderr, flush=True)
            journal.put(name, run())
        return journal.get(name)

    sd, xl = work / "sd14", work / "sdxl.safetensors"
    base = open_checkpoint

    def models() -> None:
        write_folder(sd, "sd1", small=small)
        write_single(xl, "sdxl", small=small)

    def solve(name: str) -> dict[str, Any]:
        return solve_times(
            base(sd) if name == "SD 1.4" else base(xl, tokenizer=str(TOKENIZER)), name
        )

    stage("models", models)
    result: dict[str, Any] = {"machine": machine()}
    result["copies"] = [
        stage("copying SD 1.4", lambda: copies(sd, work, cache, "SD 1.4 folder")),
        stage("copying SDXL", lambda: copies(xl, work, cache, "SDXL single file")),
    ]
    result["cold"] = stage("cold starts", lambda: cold(sd, work, cache))
    result["scaling"] = stage("many concepts", lambda: scaling(base(sd)))
    result["solve"] = [stage(f"solving {n}", partial(solve, n)) for n in ("SD 1.4", "SDXL")]
    if peer:
        result["cold"]["a peer's script"] = stage("peer", lambda: peer_time(peer, sd, work))
    return result


def machine() -> str:
    """What it is measured on."""
    parts = [platform.machine(), f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    parts.append(f"torch {torch.__version__}")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Exit 0 if every goal is met, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m lab.speed", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="needs 25 GB; emptied at the end"
    )
    parser.add_argument("--out", type=Path, default=MEASURED)
    parser.add_argument("--small", action="store_true", help="narrow models: try the measurement")
    parser.add_argument(
        "--peer", type=Path, help="a peer's script to time: python SCRIPT FOLDER OUT"
    )
    args = parser.parse_args(argv)
    quiet_libraries()
    args.work.mkdir(parents=True, exist_ok=True)
    result = measure(args.work, small=args.small, peer=args.peer)
    command = ["python", "-m", "lab.speed", *(["--small"] if args.small else [])]
    command += ["--peer", "SCRIPT"] if args.peer else []
    text = speed_page(result, shlex.join(command))
    shutil.rmtree(args.work)
    print(f"wrote {write_page(args.out, 'performance', text, data=result)}")
    return tell(goals(result))


if __name__ == "__main__":
    raise SystemExit(main())
