"""The method study: every method on the embedded model, tuned on other concepts than tested.

Does the concept go, under names the edit never saw as well, and what happens to the rest? Every
measurement is noted as it is made, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from erase_sd.algebra.methods import DEFAULT
from erase_sd.cli.common import quiet_libraries
from erase_sd.emoji.models import EMOJI_SD
from lab.page import MEASURED, fill, goal_table, tell, write_page
from lab.study.grids import GRIDS
from lab.study.measure import DIRECTIONS, GUIDANCE, STEPS, Job, Setting, Study
from lab.study.page import (
    OWN,
    Numbers,
    attack_table,
    goals,
    harmonic,
    method_table,
    numbers_of,
    plot,
    setting_table,
    summary,
)
from lab.study.targets import (
    ARTISTS,
    ATTACKED,
    FAMILIES,
    OBJECTS,
    TUNE_ARTISTS,
    TUNE_FAMILIES,
    TUNE_OBJECTS,
    Kind,
    target,
)

Best = dict[str, dict[str, Setting]]  # by kind and method
ROBUST = (DEFAULT, "unlink-oblique")  # measured with a left side as well, at their own defaults
UNTOUCHED = "nothing erased"
ROLES = ("forget", "synonym", "in", "out", "neighbour", "plain")


@dataclass(frozen=True)
class Plan:
    """What is studied; a smaller one tries the study itself.

    Attributes:
        grids: Settings tried, by method.
        tune: Names tuned on, by kind.
        test: Names tested on, by kind; "ten" holds one name.
        attacked: Objects that an attack tries to bring back.
        seeds: Of the test.
        tune_seeds: Of the search.
        images: Of each attack.
        iterations: Gradient steps of each attack.
    """

    grids: Mapping[str, Sequence[Setting]]
    tune: Mapping[Kind, Sequence[str]]
    test: Mapping[Kind, Sequence[str]]
    attacked: Sequence[str] = ATTACKED
    seeds: int = 3
    tune_seeds: int = 1
    images: int = 16
    iterations: int = 40


def whole_plan(seeds: int, tune_seeds: int) -> Plan:
    """The study of the page."""
    tune: dict[Kind, Sequence[str]] = {
        "object": TUNE_OBJECTS, "family": TUNE_FAMILIES, "artist": TUNE_ARTISTS
    }  # fmt: skip
    test: dict[Kind, Sequence[str]] = {
        "object": OBJECTS, "family": FAMILIES, "artist": ARTISTS, "ten": ("ten objects",)
    }  # fmt: skip
    return Plan(GRIDS, tune, test, seeds=seeds, tune_seeds=tune_seeds)


def tune(study: Study, plan: Plan) -> Best:
    """Each method's best setting for objects, families and artists, found on other concepts."""
    roles = ("forget", "out", "neighbour")
    jobs = [
        (kind, method, setting)
        for kind in plan.tune
        for method, grid in plan.grids.items()
        for setting in grid
    ]
    best: Best = {kind: {} for kind in plan.tune}
    reached: dict[tuple[str, str], float] = {}
    for kind, method, setting in tqdm(jobs, desc="tuning"):
        values = []
        for name in plan.tune[kind]:
            job = Job("tune", method, setting, target(kind, name), plan.tune_seeds)
            s = summary(study.score(job, roles))
            kept = (s["retained"] + s.get("ratio_neighbour", 1.0)) / 2
            values.append(harmonic(s["forgotten"], kept))
        score = float(np.mean(values))
        if score > reached.get(
            (kind, method), -np.inf
        ):  # the first of equals: the grid's own order
            reached[kind, method] = score
            best[kind][method] = setting
    return best


def settings_of(path: Path, plan: Plan) -> Best:
    """The settings that an earlier page found; methods that it lacks stand at their defaults.

    Raises:
        ValueError: If it is no page of a study.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["settings"]
        return {kind: {m: told[kind].get(m, {}) for m in plan.grids} for kind in plan.tune}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"expected the JSON of a method study, got {path}: {error}") from error


def measure(study: Study, plan: Plan, best: Best) -> list[dict[str, Any]]:
    """All test edits: every method tuned, and the default and two rivals as published."""
    jobs = []
    for kind, names in plan.test.items():
        for t in (target(kind, name) for name in names):
            for method, grid in plan.grids.items():
                tuned = best["object" if kind == "ten" else kind][method]
                jobs.append(Job("tuned", method, tuned, t, plan.seeds))
                if method in (DEFAULT, "unlink", "uce") and tuned != grid[0]:
                    jobs.append(Job("published", method, grid[0], t, plan.seeds))
                if method in ROBUST:
                    jobs.append(Job("robust", method, {"robust": True}, t, plan.seeds))
    return [study.score(job, ROLES) for job in tqdm(jobs, desc="testing")]


def attack(study: Study, plan: Plan, best: Best) -> list[dict[str, Any]]:
    """Every method against free token embeddings; the model as it was, and with a left side."""
    settings: list[tuple[str, Setting | None]] = [(UNTOUCHED, None)]
    settings += [(method, best["object"][method]) for method in plan.grids]
    settings += [(method, {"robust": True}) for method in plan.grids if method in ROBUST]
    jobs = [
        Job("attack", method, setting, target("object", name), plan.images)
        for method, setting in settings
        for name in plan.attacked
    ]
    return [study.attacked(job, plan.iterations) for job in tqdm(jobs, desc="attacks")]


def earlier(out: Path, methods: Sequence[str]) -> dict[str, Any]:
    """What the page already has on other methods than these.

    Raises:
        ValueError: If there is no page yet.
    """
    path = out / "method-study.json"
    if not path.is_file():
        raise ValueError(f"no {path}: run the whole study first, without --method")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def other(name: str) -> bool:
        plain = name.partition(" (")[0].removesuffix(", robust")
        return plain not in methods

    for kind, rows in data["numbers"].items():
        data["numbers"][kind] = {
            n if n == OWN else n.removesuffix(" (the default)"): row
            for n, row in rows.items()
            if other(n)
        }
    for kind, settings in data["settings"].items():
        data["settings"][kind] = {n: s for n, s in settings.items() if other(n)}
    again = {*methods, UNTOUCHED}
    data["attacks"] = [a for a in data["attacks"] if a["method"] not in again]
    return data


def study_page(
    plan: Plan,
    best: Best,
    entries: Sequence[Mapping[str, Any]],
    attacks: Sequence[Any],
    out: Path,
    *,
    before: Mapping[str, Any] | None = None,
    settings: Path | None = None,
) -> int:
    """Write `method-study.md`, `.json` and `.png`; 0 if every goal is met, 1 if not.

    Args:
        plan: What was studied.
        best: Settings found.
        entries: The test.
        attacks: The attacks.
        out: Folder of the page.
        before: What the page had on other methods (see `earlier`).
        settings: Page that the settings were taken from instead of searched.
    """
    numbers: dict[str, Numbers] = {kind: numbers_of(entries, kind) for kind in plan.test}
    if before:
        for kind in numbers:
            rows = {**before["numbers"][kind], **numbers[kind]}
            numbers[kind] = dict(sorted(rows.items(), key=lambda item: -item[1]["harmonic"]))
            if kind in before["settings"]:
                best[kind] = {**before["settings"][kind], **best[kind]}
        attacks = [*attacks, *before["attacks"]]
    reached = goals(numbers)
    command = f"python -m lab.method_study --seeds {plan.seeds} --tune-seeds {plan.tune_seeds}"
    others = ", ".join(n for names in plan.tune.values() for n in names)
    if settings:
        command += f" --settings {shlex.quote(str(settings))}"
        others += "; before these weights were trained"
    text = fill(
        "method-study",
        command,
        steps=STEPS,
        guidance=GUIDANCE,
        seeds=plan.seeds,
        directions=DIRECTIONS,
        others=others,
        goals=goal_table(reached),
        tables="\n\n".join(
            _section(k, names, numbers[k], entries) for k, names in plan.test.items()
        ),
        iterations=plan.iterations,
        attacked=", ".join(plan.attacked),
        images=plan.images,
        attacks=attack_table(attacks),
        settings=setting_table(best),
    )
    data = {"settings": best, "numbers": numbers, "attacks": attacks}
    path = write_page(out, "method-study", text, data=data, picture=plot(numbers))
    print(f"wrote {path}")
    return tell(reached)


def _section(kind: str, names: Sequence[str], numbers: Any, entries: Sequence[Any]) -> str:
    told = ", ".join(OBJECTS[:10] if kind == "ten" else names)
    lines = [f"## {kind}: {told}", "", method_table(numbers)]
    if kind == "artist":
        base = {e["name"]: e["before"]["plain"] for e in entries if e["kind"] == "artist"}
        rates = ", ".join(f"{n} {v:.2f}" for n, v in base.items())
        lines += ["", f"Seen where no artist is named, in the original: {rates}."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run or resume the study and write its page; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m lab.method_study", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of the test")
    parser.add_argument(
        "--tune-seeds", type=int, default=1, help="of the search for each method's setting"
    )
    parser.add_argument(
        "--model", type=Path, default=EMOJI_SD, help="weights of the embedded model"
    )
    parser.add_argument("--work", type=Path, default=Path("build/study"))
    parser.add_argument("--out", type=Path, default=MEASURED)
    parser.add_argument(
        "--method",
        action="append",
        choices=list(GRIDS),
        help="measure this method alone and keep the page's other rows; repeatable",
    )
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="JSON",
        help="take each method's setting from an earlier page instead of searching it",
    )
    args = parser.parse_args(argv)
    quiet_libraries()
    plan = whole_plan(args.seeds, args.tune_seeds)
    before = None
    if args.method:
        before = earlier(args.out, args.method)
        plan = replace(plan, grids={m: GRIDS[m] for m in args.method})
    study = Study(args.work, args.model)
    best = settings_of(args.settings, plan) if args.settings else tune(study, plan)
    entries = measure(study, plan, best)
    attacks = attack(study, plan, best)
    return study_page(plan, best, entries, attacks, args.out, before=before, settings=args.settings)


if __name__ == "__main__":
    raise SystemExit(main())
