"""Erase a concept: from a checkpoint into a new one, or from a live pipeline."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.report import certificate_lines, escaped, options_text
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.checkpoint import Checkpoint, undo_file
from erase_sd.models.embedded import EMBEDDED
from erase_sd.operations.common import Run, check_output, open_model
from erase_sd.operations.pictures import Pictures, draw, score_lines, wanted
from erase_sd.pipelines.erasing import erase_from_pipeline
from erase_sd.prompts import clean
from erase_sd.text.encoder import TextEncoder


@dataclass(frozen=True, eq=False)
class Erased:
    """What `erase` did.

    Attributes:
        erasure: The erasure, ready to be saved, combined or subtracted.
        model: What it was erased from.
        out: What was written; None for a live pipeline or a dry run.
        edited: Tensors, rank, width, dtype and the share of the edit that rounding loses.
        seconds: Wall-clock seconds of loading and of solving.
        undo: Where the original tensors are kept, if asked.
        scores: What detectors count before and after, if pictures were made.
        picture: The sheet of pictures before and after.
    """

    erasure: Erasure
    model: str
    out: Path | None = None
    edited: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    undo: Path | None = None
    scores: Mapping[str, Any] | None = None
    picture: Image.Image | None = None

    def json(self) -> dict[str, Any]:
        """For programs."""
        about = {
            "model": self.model,
            "out": str(self.out) if self.out else None,
            "edited": dict(self.edited),
            "seconds": dict(self.seconds),
            "erasure": {k: v for k, v in self.erasure.describe().items() if k != "base"},
        }
        return about | ({"evaluation": dict(self.scores)} if self.scores else {})

    def lines(self) -> list[str]:
        """For people."""
        concept = self.erasure.concepts[0]
        lines = [
            f"erased {concept.name!r} from {self.edited['tensors']} matrices, rank "
            f"{self.edited['rank']}, "
            f"{self.seconds['solve_and_edit']:.2f} s ({concept.method})",
            *("  " + line for line in certificate_lines(concept)),
            f"  casting to {self.edited['dtype']} loses {self.edited['lost to rounding']:.2%} of "
            "the edit",
            *("  " + line for line in (score_lines(self.scores) if self.scores else [])),
        ]
        if self.out is None:
            return lines
        own = Checkpoint.erasure_file(self.out)
        lines += [f"model    {self.out}", f"erasure  {own} ({own.stat().st_size / 1000:.0f} kB)"]
        if self.undo:
            lines.append(f"undo     {self.undo} (keep it private: it holds the concept)")
        if self.picture is not None:
            lines.append(f"picture  {Checkpoint.beside(self.out, 'before_after.png')}")
        return [*lines, f"report   {Checkpoint.beside(self.out, 'report.md')}"]

    def markdown(self) -> str:
        """The report."""
        concept = self.erasure.concepts[0]
        lines = [
            f"# {escaped(self.model)} without {escaped(concept.name)}",
            "",
            f"Method {concept.method} ({escaped(options_text(concept.options))}), strength "
            f"{concept.strength:g}, "
            f"{self.edited['tensors']} matrices, rank {self.edited['rank']}, "
            f"{self.seconds['solve_and_edit']:.2f} s.",
            "",
            *(f"- {escaped(line)}" for line in certificate_lines(concept)),
            "",
        ]
        if self.scores:
            lines += ["![before and after](before_after.png)", ""]
            lines += [*(f"- {line}" for line in score_lines(self.scores)), "", *_table(self.scores)]
        return "\n".join(lines) + "\n"


def _table(scores: Mapping[str, Any]) -> list[str]:
    lines = ["| prompt | | judge before | judge after | pixels changed |", "|---|---|---|---|---|"]
    for row in scores["subjects"]:
        seen = [f"{row[k]:.0%}" if k in row else "-" for k in ("before", "after")]
        kind = "forget" if row["forget"] else "keep"
        subject = escaped(row["subject"])
        lines.append(f"| {subject} | {kind} | {seen[0]} | {seen[1]} | {row['pixel_change']:.1%} |")
    return [
        *lines,
        "",
        f"{scores['images']} images, {scores['steps']} steps, guidance {scores['guidance']:g}.",
    ]


def erase(
    model: Any,
    forget: str | Sequence[str],
    *,
    retain: str | Sequence[str] = (),
    name: str | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
    pictures: Pictures | None = None,
    run: Run | None = None,
) -> Erased:
    """Take a concept out of a model.

    Args:
        model: A diffusers folder, single file, Hub id, embedded model or opened `Checkpoint`, which
            stays as it is; or a live diffusers pipeline, which is edited.
        forget: Prompts that mean the concept.
        retain: Prompts to keep besides the method's own protection.
        name: Name of the concept; default: its first prompt.
        settings: How; default: the default method as it is.
        out: Folder or file to write, of the model's kind; default: MODEL-without-CONCEPT beside the
            working folder.
        pictures: Also draw before and after, and count what detectors find.
        run: Where and how to run, and whether to write.

    Returns:
        What was done. Its `erasure` is also in the output, as `erasure.safetensors`.

    Raises:
        ValueError: On any unusable input; nothing was written then.
        FileExistsError: If `out` exists.
        OSError: If it cannot be written.

    Example:
        >>> erased = erase("emoji-sd", ["cat", "kitten"], run=Run(dry_run=True))
        >>> erased.erasure.names
        ('cat',)
    """
    run = run or Run()
    forget = clean([forget] if isinstance(forget, str) else forget)
    retain = clean([retain] if isinstance(retain, str) else retain)
    if not forget:
        raise ValueError("the forget prompts are empty; write at least one word")
    if not isinstance(model, (str, Path, Checkpoint)):
        start = time.perf_counter()
        erasure = erase_from_pipeline(model, forget, retain=retain, name=name, settings=settings)
        seconds = {"solve_and_edit": round(time.perf_counter() - start, 2)}
        return Erased(erasure, getattr(model, "name_or_path", ""), seconds=seconds)
    checkpoint = open_model(model, run.source)
    target = Path(out) if out else default_output(checkpoint, name or forget[0], str(model))
    check_output(target, checkpoint, run)
    result, weights, changed = _solve(checkpoint, str(model), forget, retain, name, settings, run)
    if pictures and wanted(checkpoint, pictures) and not run.dry_run:
        scores, sheet = draw(checkpoint, result.erasure, forget, pictures, run)
        result = replace(result, scores=scores, picture=sheet)
    return result if run.dry_run else _write(checkpoint, target, result, weights, changed, run)


def default_output(checkpoint: Checkpoint, concept: str, model: str = EMBEDDED) -> Path:
    """MODEL-without-CONCEPT, in the working folder."""
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in concept.lower())[:40].strip(
        "-"
    )
    stem = Path(model).name.removesuffix(".safetensors").removesuffix(".ckpt")
    return Path(
        f"{stem}-without-{slug or 'concept'}{'' if checkpoint.path.is_dir() else '.safetensors'}"
    )


def _solve(
    checkpoint: Checkpoint,
    model: str,
    forget: Sequence[str],
    retain: Sequence[str],
    name: str | None,
    settings: Settings | None,
    run: Run,
) -> tuple[Erased, dict[str, Tensor], dict[str, Tensor]]:
    """The result as far as it is known before pictures, the base tensors and the edited ones."""
    start = time.perf_counter()
    encoder = TextEncoder.from_checkpoint(checkpoint, device=run.device)
    weights = checkpoint.weights(kinds=(settings or Settings()).spec.kinds)
    loaded = time.perf_counter()
    erasure = fit(encoder, forget, retain=retain, name=name, weights=weights, settings=settings)
    width = encoder.width
    del encoder  # the largest thing in memory, and no longer needed
    changed = erasure.edit_weights(weights)
    solved = time.perf_counter()
    edited = {
        "tensors": len(changed),
        "rank": erasure.rank,
        "width": width,
        "dtype": str(next(iter(weights.values())).dtype).removeprefix("torch."),
        "lost to rounding": max(
            # one at a time: in float64 they are four times the file
            (
                erasure.edit_of(s).lost(weights[s.name], changed[s.name])
                for s in erasure.editable(changed)
            ),
            default=0.0,
        ),
    }
    seconds = {"load": round(loaded - start, 2), "solve_and_edit": round(solved - loaded, 2)}
    return Erased(erasure, model, edited=edited, seconds=seconds), weights, changed


def _write(
    checkpoint: Checkpoint,
    target: Path,
    result: Erased,
    weights: Mapping[str, Tensor],
    changed: Mapping[str, Tensor],
    run: Run,
) -> Erased:
    result = replace(result, out=target, undo=undo_file(target) if run.keep_undo else None)
    files = result.erasure.files()
    files["report.json"] = json.dumps(result.json(), indent=2, ensure_ascii=False).encode()
    files["report.md"] = result.markdown().encode()
    if result.picture is not None:
        picture = io.BytesIO()
        result.picture.save(picture, format="PNG")
        files["before_after.png"] = picture.getvalue()
    undo = weights if run.keep_undo else None
    checkpoint.write(target, changed, files, undo=undo, force=run.force)
    return result
