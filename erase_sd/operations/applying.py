"""Bake erasures into a copy of a checkpoint, or apply them to a live pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.artifact.report import printable
from erase_sd.models.checkpoint import Checkpoint
from erase_sd.models.embedded import EMBEDDED
from erase_sd.models.files import check_apart
from erase_sd.models.single_file import SingleFile
from erase_sd.operations.common import (
    Run,
    check_output,
    load_erasure,
    open_model,
)
from erase_sd.pipelines.live import apply_to_pipeline
from erase_sd.text.fingerprint import fingerprint_of


@dataclass(frozen=True, eq=False)
class Applied:
    """What `apply` did.

    Attributes:
        erasure: What was applied, joined and scaled.
        out: What was, or in a dry run would have been, written; None for a live pipeline.
        tensors: How many tensors it edits.
        written: Whether it was written.
    """

    erasure: Erasure
    out: Path | None
    tensors: int
    written: bool

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {"concepts": list(self.erasure.names), "tensors": self.tensors, "out": str(self.out)}

    def lines(self) -> list[str]:
        """For people."""
        verb = "wrote" if self.written else "would write"
        names = ", ".join(printable(n) for n in self.erasure.names)
        return [f"{verb} {self.out}: {self.tensors} matrices without {names}"]


def apply(
    erasure: Erasure | str | Path | Sequence[Erasure | str | Path],
    model: Any = EMBEDDED,
    *,
    out: str | Path | None = None,
    scale: float = 1.0,
    allow_other_base: bool = False,
    run: Run | None = None,
) -> Applied:
    """Apply one or more erasures; their order does not matter.

    Args:
        erasure: Erasures, or files or erased checkpoints that hold one.
        model: As for `erase`: what is on disk is copied, a live pipeline is edited.
        out: Folder or file to write; needed for a model on disk.
        scale: What multiplies the change: 0 changes nothing, 1 as made.
        allow_other_base: Apply although the base or its text encoder differ.
        run: How to run, and whether to write.

    Raises:
        WrongBase: If the base differs.
        ValueError: On any other unusable input.
        FileExistsError: If `out` exists.
        OSError: If it cannot be written.

    Example:
        >>> from erase_sd import erase
        >>> cat = erase("emoji-sd", ["cat"], run=Run(dry_run=True)).erasure
        >>> apply(cat, "emoji-sd", out="half", scale=0.5, run=Run(dry_run=True)).erasure.scale
        0.5
    """
    run = run or Run()
    given = [erasure] if isinstance(erasure, (Erasure, str, Path)) else list(erasure)
    total = combine([load_erasure(e) for e in given]).scaled(scale)
    if not isinstance(model, (str, Path, Checkpoint)):
        live = apply_to_pipeline(model, total, allow_other_base=allow_other_base)
        return Applied(total, None, len(total.editable(live.originals())), True)
    if out is None:
        raise ValueError("expected out: the folder or file to write")
    checkpoint, target = open_model(model, run.source), Path(out)
    check_output(target, checkpoint, run)
    check_apart(target, *(Path(e) for e in given if not isinstance(e, Erasure)))
    weights = checkpoint.weights(kinds=total.kinds)
    if allow_other_base:
        total = total.bound_to(weights)  # what is written verifies against this base
    else:
        total.check_base(weights)
        if not isinstance(checkpoint, SingleFile) or checkpoint.reads:
            total.check_text_encoder(fingerprint_of(checkpoint))
    changed = total.edit_weights(weights)
    if not run.dry_run:
        undo = weights if run.keep_undo else None
        checkpoint.write(target, changed, total.files(), undo=undo, force=run.force)
    return Applied(total, target, len(changed), not run.dry_run)
