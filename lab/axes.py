"""All methods, closed-form and trained, on every axis that the field asks about; resumes.

Settings are found on other concepts than tested. Trainings, pictures and numbers that are there
already are not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from erase_sd.algebra.methods import DEFAULT
from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.cli.common import quiet_libraries
from erase_sd.emoji.models import EMOJI_SD
from erase_sd.emoji.world import load_world
from erase_sd.eval.protocol import Protocol, load_protocol
from erase_sd.eval.run_folder import ORIGINAL, Variant
from erase_sd.eval.runner import evaluate
from erase_sd.eval.variants import pipelines_of
from erase_sd.models.opening import open_checkpoint
from erase_sd.operations.common import Run
from erase_sd.training import Trainer
from erase_sd.training.bench import Task
from erase_sd.training.running import Plan as Training
from erase_sd.training.running import train_checkpoint
from lab.method_study import Best, Plan, tune
from lab.page import MEASURED
from lab.study.axes_page import axes_page
from lab.study.grids import GRIDS, TRAINED
from lab.study.measure import Setting, Study
from lab.study.page import harmonic, summary
from lab.study.targets import TUNE_ARTISTS, TUNE_OBJECTS, Kind, Target, target

PROTOCOLS = (
    "emoji-canvas", "emoji-pinpoint", "emoji-pairs", "emoji-names", "emoji-latents",
    "emoji-sequence",
)  # fmt: skip
BestTrained = Mapping[str, Mapping[Trainer, Setting]]  # by kind and method
KEPT_BY_TRAINING = 8  # of a target's retain list, for trained methods that draw what they keep


@dataclass(frozen=True)
class Scope:
    """How much is measured; a quick one tries the study itself.

    Attributes:
        closed: Grids of closed-form methods.
        trained: Grids of trained methods.
        tune: Names tuned on, by kind.
        protocols: Which.
        limit: Rows of every group, role, part and attack; None for all.
        groups: Groups of each protocol; None for all.
        steps: Denoising steps; None for each protocol's own.
    """

    closed: Mapping[str, Sequence[Setting]] = field(default_factory=lambda: GRIDS)
    trained: Mapping[Trainer, Sequence[Setting]] = field(default_factory=lambda: TRAINED)
    tune: Mapping[Kind, Sequence[str]] = field(
        default_factory=lambda: {"object": TUNE_OBJECTS, "artist": TUNE_ARTISTS}
    )
    protocols: Sequence[str] = PROTOCOLS
    limit: int | None = None
    groups: int | None = None
    steps: int | None = None

    def protocol(self, name: str) -> Protocol:
        """A protocol, as large as asked."""
        found = load_protocol(name, overrides={"steps": self.steps} if self.steps else None)
        if self.groups is not None:
            keep = found.groups[: self.groups]
            found = replace(found, rows=tuple(r for r in found.rows if r.group in keep))
        return found.limited(self.limit) if self.limit else found


def quick() -> Scope:
    """Two closed-form methods and two trained ones, few images: does the study itself work?"""
    short = {"steps": 6, "batch": 2}
    return Scope(
        closed={DEFAULT: [{}], "unlink": [{}]},
        trained={
            "esd-x": [{"lr": 1e-3, "way": 4} | short],
            "leco": [{"lr": 2e-2, "way": 4} | short],
        },
        tune={"object": ("fox",), "artist": TUNE_ARTISTS},
        limit=1,
        groups=2,
        steps=4,
    )


class Rivals:
    """Trained checkpoints, each made once and kept.

    Args:
        work: Folder; another base model has another.
        base: Checkpoint that they start from.
    """

    def __init__(self, work: Path, base: Path) -> None:
        self.work, self.base = work, base

    def after(self, method: Trainer, setting: Setting, targets: Sequence[Target]) -> Path:
        """The checkpoint after some targets were trained away, one after another."""
        model = self.base
        for i in range(1, len(targets) + 1):
            model = self._one(method, setting, targets[:i], model)
        return model

    def _one(
        self, method: Trainer, setting: Setting, targets: Sequence[Target], model: Path
    ) -> Path:
        gone = {n for t in targets for n in t.forget}
        last = targets[-1]
        keep = tuple(n for n in last.retain if n not in gone)[:KEPT_BY_TRAINING]
        task = Task(last.forget, keep if method == "salun" else ())
        told = [method, dict(setting), [t.name for t in targets], keep]
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        out = self.work / f"{method}-{last.name}-{key}"
        if not out.is_dir():
            train_checkpoint(model, task, Training(method, dict(setting)), out, Run(force=True))
        return out

    @staticmethod
    def seconds(path: Path) -> float:
        """What a checkpoint's last training took."""
        return float(json.loads((path / "erasure.json").read_text(encoding="utf-8"))["seconds"])


def tune_trained(study: Study, rivals: Rivals, scope: Scope) -> BestTrained:
    """Each trained method's best setting by kind, found on other concepts."""
    best: dict[str, dict[Trainer, Setting]] = {kind: {} for kind in scope.tune}
    jobs = [(k, m, s) for k in scope.tune for m, grid in scope.trained.items() for s in grid]
    reached: dict[tuple[str, str], float] = {}
    for kind, method, setting in tqdm(jobs, desc="tuning what trains"):
        values = [
            _scored(study, rivals, method, setting, target(kind, n)) for n in scope.tune[kind]
        ]
        score = sum(values) / len(values)
        if score > reached.get((kind, method), -1.0):
            reached[kind, method] = score
            best[kind][method] = setting
    return best


def _scored(study: Study, rivals: Rivals, method: Trainer, setting: Setting, t: Target) -> float:
    """Harmonic mean of forgotten and retained, as the method study has it; kept in its journal."""
    key = json.dumps(["trained", method, dict(setting), t.kind, t.name, study.steps])
    if key not in study.journal:
        roles = ("forget", "out", "neighbour")
        other = Study(
            study.journal.path.parent, rivals.after(method, setting, [t]), steps=study.steps
        )
        seen = [s.measure(t, None, 0, roles)["hits"] for s in (study, other)]
        before, after = ({r: sum(h) / len(h) for r, h in hits.items()} for hits in seen)
        s = summary({"before": before, "after": after})
        kept = (s["retained"] + s.get("ratio_neighbour", 1.0)) / 2
        study.journal.put(key, harmonic(s["forgotten"], kept))
    return float(study.journal.get(key))


def targets_of(protocol: Protocol, group: str) -> list[Target]:
    """What a group of a protocol erases, in turn; nothing of it is listed to be kept."""
    names = protocol.forget[group]
    kind: Kind = "artist" if group in load_world().artists else "object"
    found = [target(kind, n) for n in (names if protocol.apart else (group,))]
    gone = {n for t in found for n in t.forget}
    return [replace(t, retain=tuple(n for n in t.retain if n not in gone)) for t in found]


def variants(
    study: Study, rivals: Rivals, protocol: Protocol, closed: Best, trained: BestTrained
) -> list[Variant]:
    """The original and every method at its best setting."""

    def maker(method: str, extra: Mapping[str, Any]) -> Callable[[str], Erasure]:
        @cache
        def made(group: str) -> Erasure:
            targets = targets_of(protocol, group)
            setting = {**closed[targets[0].kind][method], **extra}
            return combine([study.make(method, setting, t) for t in targets])

        return made

    found = [Variant(ORIGINAL, "", {})]
    for method in closed["object"]:
        about = {"settings": {k: dict(s[method]) for k, s in closed.items()}}
        found.append(Variant(method, "", about, maker(method, {})))
        if method == DEFAULT:
            robust = {"robust": True}
            found.append(Variant(f"{method}-robust", "", about | robust, maker(method, robust)))
    for name in trained["object"]:
        where = {}
        for group in tqdm(protocol.groups, desc=f"{name} for {protocol.name}"):
            targets = targets_of(protocol, group)
            setting = trained[targets[0].kind][name]
            where[group] = str(rivals.after(name, setting, targets))
        found.append(Variant(name, where, {"trained": where}))
    return found


def run(scope: Scope, work: Path, model: Path, out: Path, command: str) -> Path:
    """Tune, train, draw, measure, write the page; everything that is there already is kept.

    Args:
        scope: How much.
        work: Folder of journals, trainings and pictures.
        model: The embedded model's weights.
        out: Folder of the page.
        command: What made it.
    """
    steps = {"steps": scope.steps} if scope.steps else {}
    study = Study(work, model, **steps)
    own = work / study.journal.path.stem  # another base: other trainings and pictures
    rivals, base = Rivals(own / "trained", model), open_checkpoint(model)
    plan = Plan(scope.closed, scope.tune, {}, tune_seeds=1)
    closed: Best = tune(study, plan)
    trained = tune_trained(study, rivals, scope)
    results = {}
    for name in scope.protocols:
        protocol = scope.protocol(name)
        made = variants(study, rivals, protocol, closed, trained)
        key = hashlib.sha256(json.dumps([protocol.hash, [v.about for v in made]]).encode())
        folder = own / f"{name}-{key.hexdigest()[:10]}"
        result = evaluate(protocol, made, pipelines_of(protocol, base), folder)
        if result is None:
            raise RuntimeError(f"{name} was run in a second process, which has no results")
        results[name] = result
    seconds = {
        m: Rivals.seconds(rivals.after(m, s, [target("object", scope.tune["object"][0])]))
        for m, s in trained["object"].items()
    }
    others = [n for names in scope.tune.values() for n in names]
    return axes_page(results, {"closed": closed, "trained": trained, "seconds": seconds,
                               "others": others}, out, command)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run or resume the study and write `axes.md`, `.json` and `.png`."""
    parser = argparse.ArgumentParser(prog="python -m lab.axes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few methods and images: a trial")
    parser.add_argument("--limit", type=int, help="rows of every group, role, part and attack")
    parser.add_argument(
        "--only", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), metavar="PROTOCOL"
    )
    parser.add_argument("--model", type=Path, default=EMOJI_SD, help="the embedded model's weights")
    parser.add_argument("--work", type=Path, default=Path("build/axes"))
    parser.add_argument("--out", type=Path, help="folder of the page (default: docs/measured)")
    args = parser.parse_args(argv)
    quiet_libraries()
    out = args.out or (args.work / "page" if args.quick else MEASURED)
    scope = replace(quick() if args.quick else Scope(), protocols=args.only)
    scope = replace(scope, limit=args.limit) if args.limit else scope
    words = ["--quick"] if args.quick else []
    words += ["--limit", str(args.limit)] if args.limit else []
    words += ["--only", *args.only] if len(args.only) < len(PROTOCOLS) else []
    command = shlex.join(["python", "-m", "lab.axes", *words])
    path = run(scope, args.work, args.model, out, command)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
