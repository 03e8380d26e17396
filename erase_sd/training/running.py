"""Train a model into another: from a checkpoint to an erased checkpoint."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd._version import __version__
from erase_sd.artifact.lora import LoraStyle, keyed, kohya_metadata
from erase_sd.models.checkpoint import Checkpoint, DiffusersFolder
from erase_sd.models.embedded import usual
from erase_sd.models.files import PROVENANCE, atomic_path, check_target
from erase_sd.models.staging import make_folders, unmake
from erase_sd.models.tensor_files import dump_tensors, read_tensors, tensor_hash
from erase_sd.operations.common import Run, check_output, open_model
from erase_sd.pipelines.loading import load_pipeline
from erase_sd.processes import Share
from erase_sd.training import METHODS, Trainer
from erase_sd.training.bench import Bench, Task
from erase_sd.training.lesson import Factors, Lesson, Options
from erase_sd.training.loop import SAVE_EVERY, History, train

_STYLES: tuple[LoraStyle, ...] = ("peft", "kohya")  # of a U-Net, in diffusers and elsewhere


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        method: Of `TRAINERS`.
        options: Options that differ from the method's defaults; text is read as their type.
        seed: Of everything random.
        bf16: Predict in bfloat16; weights and their updates stay float32.
        save_every: Seconds between two states.

    Raises:
        ValueError: On an unknown method or option.

    >>> Plan("esd-x").settings.steps
    1000
    """

    method: Trainer
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    bf16: bool = False
    save_every: float = SAVE_EVERY

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"no trained method {self.method!r}; there are {', '.join(METHODS)}")
        METHODS[self.method].make_options(self.options)

    @property
    def settings(self) -> Options:
        """All options, checked."""
        return METHODS[self.method].make_options(self.options)

    def check(self, task: Task) -> None:
        """Refuse a task with something that the method does not read.

        Raises:
            ValueError: Naming it.
        """
        reads = METHODS[self.method].reads
        given = {"retain": task.retain, "toward": task.toward, "pictures": task.pictures}
        for name, value in given.items():
            if value and name not in reads:
                raise ValueError(f"{self.method} reads no {name}; leave --{name} out")


@dataclass(frozen=True)
class Trained:
    """What a training did.

    Attributes:
        about: Everything that decided it: method, options, prompts, seed, base, tool.
        history: How it went.
        out: The checkpoint.
        tensors: How many of the denoiser's tensors changed.
        loras: LoRA files, by style.
    """

    about: Mapping[str, Any]
    history: History
    out: Path
    tensors: int
    loras: Mapping[str, Path] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """For programs; also the checkpoint's provenance."""
        return dict(self.about) | {
            "steps": len(self.history.losses),
            "seconds": round(self.history.seconds, 2),
            "memory": self.history.memory,
            "tensors": self.tensors,
            "last losses": [float(f"{v:.6g}") for v in self.history.losses[-20:]],
        }

    def lines(self) -> list[str]:
        """For people."""
        memory = self.history.memory
        told = f", {memory / 1e9:.1f} GB" if memory else ""
        return [
            f"trained {self.about['method']} on {', '.join(self.about['forget'])}: "
            f"{len(self.history.losses)} steps, {self.history.seconds:.0f} s{told}, "
            f"{self.tensors} tensors changed",
            f"model    {self.out}",
            *(f"lora     {path} ({style})" for style, path in self.loras.items()),
        ]


def work_folder(out: Path) -> Path:
    """Where an unfinished training keeps its state, beside its output."""
    return out.with_name(f"{out.name}.training")


def train_checkpoint(
    model: str | Path | Checkpoint,
    task: Task,
    plan: Plan,
    out: Path,
    run: Run | None = None,
    share: Share | None = None,
) -> Trained | None:
    """Train a checkpoint into another; given again after an interruption, it goes on.

    Args:
        model: Diffusers folder of Stable Diffusion 1 or 2, Hub id, or an embedded model.
        task: What to unlearn.
        plan: How.
        out: Folder to write: plain, with provenance in `erasure.json`. A LoRA, where the method
            makes one, stands beside it.
        run: Device, and whether an existing output may be replaced.
        share: This process's part, if there are several; they must see the same files.

    Returns:
        What was done, in the first process; None in others.

    Raises:
        ValueError: On any unusable input; nothing was written then.
        FileExistsError: If `out` exists.
    """
    run, share = run or Run(), share or Share()
    plan.check(task)
    base = open_model(model, run.source)
    if not isinstance(base, DiffusersFolder) or base.architecture.name != "sd":
        what = base.architecture.name if isinstance(base, DiffusersFolder) else "a single file"
        raise ValueError(f"expected a diffusers folder of Stable Diffusion 1 or 2, got {what}")
    check_output(out, base, run)
    work = work_folder(out)
    pipe = load_pipeline(base, variant=base.variant, device=run.device)
    bench = Bench(pipe, task, plan.seed, usual(base.path).guidance, work, plan.bf16)
    about = provenance(base, str(model), task, plan, share.processes)
    what = json.dumps(about["what"], sort_keys=True)
    made = make_folders(work)
    try:
        lesson, history = run_plan(bench, plan, what, work, share)
    except BaseException:
        unmake(made)  # unless there is a state to go on from
        raise
    if share.process:
        share.wait()
        return None
    result = _write(base, lesson, Trained(about["told"], history, out, 0), force=run.force)
    shutil.rmtree(work)
    share.wait()
    return result


def run_plan(
    bench: Bench,
    plan: Plan,
    about: str,
    work: Path | None = None,
    share: Share | None = None,
) -> tuple[Lesson, History]:
    """Train the bench's network in place.

    Args:
        bench: The model and what it should unlearn.
        plan: How.
        about: What is trained; a state of something else is refused.
        work: Folder of the state; None keeps none.
        share: This process's part.

    Returns:
        The lesson, whose `changed` has the outcome, and how it went.
    """
    share = share or Share()
    if share.process:
        share.wait()  # for the pictures that the first one draws
    lesson = METHODS[plan.method].function(bench, plan.settings)
    if share.process == 0:
        share.wait()
    try:
        history = train(
            lesson, plan.settings, seed=plan.seed, about=about,
            state=work / "state.pt" if work else None, save_every=plan.save_every, share=share,
        )  # fmt: skip
    finally:
        lesson.close()
    bench.network.requires_grad_(False)
    return lesson, history


def provenance(
    base: DiffusersFolder, model: str, task: Task, plan: Plan, processes: int = 1
) -> dict[str, Any]:
    """What decides a training ("what"), and that with words about it ("told")."""
    weights = {n: tensor_hash(w) for n, w in sorted(base.weights().items())}
    what = {
        "method": plan.method,
        "options": asdict(plan.settings),
        "forget": list(task.forget),
        "retain": list(task.retain),
        "toward": task.toward,
        "pictures": str(task.pictures) if task.pictures else None,
        "seed": plan.seed,
        "bf16": plan.bf16,
        "processes": processes,
        "base": weights,
    }
    told = {
        "tool": f"erase-sd {__version__}",
        "trained": True,
        "source": METHODS[plan.method].source,
        "model": model,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return {"what": what, "told": told | what}


def _write(base: DiffusersFolder, lesson: Lesson, result: Trained, *, force: bool) -> Trained:
    """The checkpoint with what changed, in its own dtypes, and the LoRA beside it."""
    changed, whole = lesson.changed(), base.whole()
    stored = {
        n: t for f in base.denoiser_files for n, t in read_tensors(f, _names(whole, f)).items()
    }
    fresh: dict[str, Tensor] = {}
    for name, value in changed.items():
        now = value.detach().cpu().to(stored[name].dtype)
        if not bool(torch.isfinite(now).all()):
            raise RuntimeError(f"{name} is not finite in {now.dtype} after the training")
        if not torch.equal(now, stored[name]):
            fresh[name] = now
    result = replace(result, tensors=len(fresh))
    words = json.dumps(result.json(), indent=2, ensure_ascii=False).encode()
    if lesson.factors is not None:
        loras = _write_loras(base, lesson.factors(), result, force=force)
        result = replace(result, loras=loras)
    whole.write(result.out, fresh, {PROVENANCE: words}, force=force)
    return result


def _names(whole: DiffusersFolder, file: Path) -> list[str]:
    return [name for name, (where, _) in whole.where.items() if where == file]


def _write_loras(
    base: DiffusersFolder, factors: Factors, result: Trained, *, force: bool
) -> dict[str, Path]:
    """The LoRA in every style that its hosts read, beside the checkpoint."""
    paths: dict[LoraStyle, Path] = {s: lora_file(result.out, s) for s in _STYLES}
    for path in paths.values():
        check_target(path, force=force)
    rank = max(len(down) for down, _ in factors.values())
    width = next(iter(base.weights().values())).shape[1]
    plain = {m: (d.detach().cpu(), u.detach().cpu()) for m, (d, u) in factors.items()}
    for style, path in paths.items():
        told = json.dumps(result.json(), ensure_ascii=False)
        metadata = {"format": "pt", "erase_sd": told}
        if style == "kohya":
            names: Sequence[str] = result.about["forget"]
            metadata |= kohya_metadata(base.architecture.name, width, rank, names)
        with atomic_path(path, force=force) as draft:
            draft.write_bytes(dump_tensors(keyed(plain, base.architecture, style=style), metadata))
    return {str(style): path for style, path in paths.items()}


def lora_file(out: Path, style: LoraStyle) -> Path:
    """Where a trained LoRA lies: beside its checkpoint.

    >>> lora_file(Path("cat-free"), "kohya").name
    'cat-free.kohya.safetensors'
    """
    return out.with_name(f"{out.name}.{style}.safetensors")
