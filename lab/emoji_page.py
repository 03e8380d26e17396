"""What the validation of emoji-sd found, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.page import table


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
