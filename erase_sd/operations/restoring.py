"""Take it back: concepts out of an erasure file, an erasure out of a checkpoint or a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase_sd.artifact.report import printable
from erase_sd.models.checkpoint import Checkpoint, undo_file
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.placing import settle
from erase_sd.models.tensor_files import read_tensors, tensor_names
from erase_sd.operations.common import Run, check_output, load_erasure
from erase_sd.pipelines.live import restore_pipeline


@dataclass(frozen=True)
class Restored:
    """What `restore` or `subtract` did.

    Attributes:
        out: What was written; None for a live pipeline.
        concepts: What is still erased in it.
        tensors: How many original tensors were put back.
    """

    out: Path | None
    concepts: tuple[str, ...] = ()
    tensors: int = 0

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), "concepts": list(self.concepts), "restored": self.tensors}

    def lines(self) -> list[str]:
        """For people."""
        left = ", ".join(printable(c) for c in self.concepts)
        return [f"wrote {self.out}: {left or 'the original, bit for bit'}"]


def subtract(
    erasure: str | Path, names: Sequence[str], out: str | Path, *, force: bool = False
) -> Restored:
    """Write an erasure file less some concepts; the others are as if made alone.

    Raises:
        ValueError: If a name is not erased there, or nothing would be left.
        FileExistsError: If `out` exists and `force` is off.

    Example:
        >>> import tempfile
        >>> from erase_sd import Erasure, Run, erase
        >>> dry = Run(dry_run=True)
        >>> cat, dog = (erase("emoji-sd", [c], run=dry).erasure for c in ("cat", "dog"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     both = (cat + dog).save(Path(folder) / "both.safetensors")
        ...     done = subtract(both, ["dog"], Path(folder) / "cat.safetensors")
        ...     print(Erasure.load(done.out).names)
        ('cat',)
    """
    rest = load_erasure(erasure)
    for name in names:
        rest = rest - name
    if not rest.concepts:
        raise ValueError(
            "nothing would be left: the erasure has no other concept; use the base model instead"
        )
    return Restored(rest.save(out, force=force), rest.names)


def restore(
    erased: Any,
    out: str | Path | None = None,
    *,
    undo: str | Path | None = None,
    run: Run | None = None,
) -> Restored:
    """The original model, bit for bit.

    Args:
        erased: An erased checkpoint that was written with `keep_undo`, or a live pipeline.
        out: Folder or file to write; needed for a checkpoint.
        undo: Its original tensors; default: `NAME.undo.safetensors` beside it.
        run: How to run.

    Raises:
        ValueError: If it is no erased checkpoint, or its originals are missing or not the base's.
        FileExistsError: If `out` exists.
        OSError: If it cannot be written.

    Example:
        >>> from erase_sd import erase
        >>> from erase_sd.pipelines.loading import load_pipeline, model_path
        >>> pipe = load_pipeline(model_path("emoji-sd"))
        >>> _ = erase(pipe, ["cat"])
        >>> _ = restore(pipe)  # every bit is back
    """
    run = run or Run()
    if not isinstance(erased, (str, Path)):
        restore_pipeline(erased)
        return Restored(None)
    if out is None:
        raise ValueError("expected out: the folder or file to write")
    path, target = Path(erased), Path(out)
    settle(path)
    own = Checkpoint.erasure_file(path)
    if not own.is_file():
        raise ValueError(
            f"{path} is no erased checkpoint; to take a concept out of an erasure file add "
            "--concept"
        )
    kept = Path(undo) if undo else undo_file(path)
    if not kept.is_file():
        raise ValueError(
            f"no {kept}: the originals are kept only on request (--keep-undo); use the base model"
        )
    model = open_checkpoint(path, variant=run.source.variant)
    check_output(target, model, run)
    originals = read_tensors(kept, tensor_names(kept))
    # The hashes of the base are in the erasure: what comes back is what was there, or nothing does.
    load_erasure(own).check_base(originals)
    if not run.dry_run:
        model.write(target, originals, {}, force=run.force)
    return Restored(target, (), len(originals))
