"""What the validation of emoji-sd found, in words and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.page import table

EARLIER = Path(__file__).parent / "emoji_earlier.json"  # of weights that were shipped before


def training_table(training: Mapping[str, Any]) -> str:
    """Every stage of every training that made the weights, the last training first."""
    rows = []
    phase: Mapping[str, Any] | None = training
    while phase:
        again = " (continued)" if "continues" in phase else ""
        for stage, seconds in phase["seconds"].items():
            plan = phase["plan"].get(stage)
            if isinstance(plan, Mapping):
                size, rate = f"{plan['steps']} x {plan['batch']}", plan["lr"]
                rows.append([stage + again, size, rate, seconds])
            elif plan is not None:
                rows.append([stage + again, plan, "", seconds])
        phase = phase.get("continues")
    return table(["stage", "steps x batch", "peak learning rate", "seconds"], rows)


def commands(training: Mapping[str, Any]) -> list[str]:
    """The commands that made the weights, the first training first."""
    found = []
    phase: Mapping[str, Any] | None = training
    while phase:
        found.append(str(phase["command"]))
        phase = phase.get("continues")
    return found[::-1]


def steps_of(training: Mapping[str, Any]) -> int:
    """Steps of the generator over all trainings that made the weights."""
    own = int(training["plan"].get("unet", {"steps": 0})["steps"])
    return own + (steps_of(training["continues"]) if "continues" in training else 0)


def curve(result: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """What the same command found after fewer steps, and now."""
    earlier = json.loads(EARLIER.read_text(encoding="utf-8"))
    worst = min(result["per artist"].values())
    now = {"steps": steps_of(training), "worst artist": worst} | dict(result)
    columns = ("objects", "worst object", "pairs", "artists", "worst artist", "backgrounds")
    rows = [[f"{r['steps']:,}", *(f"{r[c]:.1%}" for c in columns)] for r in (*earlier, now)]
    return table(["steps of the generator", *columns], rows)


def second_opinion(result: Mapping[str, Any]) -> str:
    """What the second judge said, in a sentence; that there was none, if there was none."""
    if "second judge" not in result:
        return (
            "No second judge was asked: `python -m lab.train_emoji --stages judge2` trains it, "
            "and its weights belong in `lab/weights/`."
        )
    told, own = result["second judge"], result["second judge on renders"]
    return (
        f"A second judge (another network, of another seed, trained on renders alone; "
        f"{own['judge']:.1%} of unseen renders right) names the same object as the first in "
        f"{told['agreement']:.1%} of the generated single-object images, and in "
        f"{told['agreement where the first is right']:.1%} of those in which the first finds what "
        f"was asked for. By it alone {told['objects']:.1%} show their object."
    )
