"""What the parts of docs/measured/vision.md share: where they are made, and their tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.page import Goal, goal_table
from lab.vision_cases import Setting
from lab.vision_report import by_class, markdown
from lab.vision_runs import run

LAST = ("rayleigh", "unlink", "affine", "mask")  # methods that touch the last layer alone
# Published numbers, of the papers' own networks and data: not ours, and not comparable but in kind.
PUBLISHED: dict[str, dict[str, dict[str, str]]] = json.loads(
    (Path(__file__).parent / "pages" / "vision_published.json").read_text(encoding="utf-8")
)


@dataclass
class Study:
    """Where it is made, how much of it, and what came out so far.

    Attributes:
        work: Journals and resumable trainings.
        data: Folder of CIFAR-10 and its networks, as `make data-cifar10` builds it.
        classes: Of digits.
        seeds: Of digits.
        cifar: Classes of CIFAR-10, in the tables that take some.
        images: Training images of CIFAR-10, and half as many test images.
        networks: Of digits.
        retrain: Whether a ResNet-20 and its Retrain are trained here.
        random: Whether one without a random tenth of the samples is, too.
        shadows: Networks of each kind for PGU's attack.
        rivals: What is compared on the network trained here.
    """

    work: Path
    data: Path
    classes: list[int]
    seeds: int
    cifar: list[int]
    shadows: int
    images: int
    networks: list[str]
    retrain: bool
    random: bool
    rivals: Sequence[str]

    def __post_init__(self) -> None:
        self.numbers: dict[str, Any] = {}
        self.pictures: dict[str, bytes] = {}
        self.ran: list[list[Any]] = []

    def table(
        self, title: str, name: str, setting: Setting, *, published: bool = False, **more: Any
    ) -> str:
        """One table, run or read from its journal; with what its paper printed, if asked."""
        known: dict[str, Any] = {"methods": [], "classes": list(range(10)), "seeds": 1}
        rows = run(name, setting, self.work, **(known | more))
        self.note(title, name, rows, sum(r["cost"] for r in rows))
        beside = PUBLISHED.get(name) if published else None
        return f"### {title}\n\n{markdown(rows, beside)}\n"

    def note(self, title: str, name: str, rows: Sequence[Mapping[str, Any]], cost: float) -> None:
        """Keep a table's numbers, and that it was run."""
        self.numbers[title] = rows
        runs, failed = (sum(r[k] for r in rows) for k in ("runs", "failed"))
        self.ran.append([title, f"`{name}`", runs, failed or "-", f"{cost / 60:.1f}"])

    def classes_of(self, title: str, published: bool = False) -> str:
        """A class-wise table once more, a column for each class: one setting for all."""
        told = "UA by class (its number), one setting for all classes:"
        beside = PUBLISHED["classes"] if published else None
        return f"{told}\n\n{markdown(by_class(self.numbers[title]), beside)}\n"

    def part(self, make: Callable[[Study], str], command: str) -> dict[str, Any]:
        """A part of the page with its numbers, what was run for it, and the command."""
        self.numbers, self.ran = {}, []
        text = make(self)
        return {"command": command, "text": text, "tables": self.numbers, "ran": self.ran}

    def goals(self, title: str, row: str) -> str:
        """What an edit that is more than hiding aimed at, and what it reached in a table."""
        means = {r["row"]: r["mean"] for r in self.numbers[title]}
        found, before = means[row], means["original"]
        kept = 100 * found["RA"] / before["RA"]
        goals = [
            Goal.at_least(f"{row}: UA, %", 99, found["UA"], "{:.1f}"),
            Goal.at_least(f"{row}: share of the original's RA, %", 99, kept, "{:.1f}"),
            Goal.at_most(f"{row}: seconds", 10, found["seconds"], "{:.1f}"),
        ]
        if "retrain" in means:
            above = found["relearn 1"] - means["retrain"]["relearn 1"]
            what = f"{row}: relearn 1 above Retrain's, points"
            goals.append(Goal.at_most(what, 10, above, "{:.1f}"))
        return goal_table(goals) + "\n"
