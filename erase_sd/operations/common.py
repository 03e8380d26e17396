"""What the operations share: where a model is, how to write a result.

Which erasure belongs to a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from erase_sd.artifact.erasure import Erasure
from erase_sd.models.checkpoint import Checkpoint, undo_file
from erase_sd.models.embedded import EMBEDDED
from erase_sd.models.files import (
    ERASURE,
    check_apart,
    check_room,
    check_target,
)
from erase_sd.models.hub import local_file
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.placing import settle
from erase_sd.models.single_file import TOKENIZER, SingleFile
from erase_sd.pipelines.loading import model_path


@dataclass(frozen=True)
class Source:
    """How to find and read a model.

    Attributes:
        variant: Weights variant of a folder or Hub id, e.g. "fp16".
        revision: Branch, tag or commit of a Hub id.
        tokenizer: Folder or Hub id of a single file's tokenizer.
        allow_pickle: Read a `.ckpt`, by torch's loader of tensors alone.
    """

    variant: str = ""
    revision: str | None = None
    tokenizer: str = TOKENIZER
    allow_pickle: bool = False


@dataclass(frozen=True)
class Run:
    """How an operation runs.

    Attributes:
        source: How the model is found and read.
        device: Where text is encoded and images are made: "cpu", "cuda", "cuda:1", "mps".
        force: Replace what stands under the output's name, if this tool wrote it.
        keep_undo: Also write the original tensors beside the output, for `restore`.
        dry_run: Check and compute everything, write nothing.

    Example:
        >>> Run(dry_run=True).device
        'cpu'
    """

    source: Source = Source()
    device: str = "cpu"
    force: bool = False
    keep_undo: bool = False
    dry_run: bool = False


def open_model(
    model: str | Path | Checkpoint = EMBEDDED, source: Source | None = None
) -> Checkpoint:
    """The checkpoint of a name, downloaded if it is a Hub id; no weight is loaded.

    Args:
        model: Diffusers folder, single `.safetensors`, Hub id, or the name of an embedded model.
        source: How to find and read it.

    Raises:
        ValueError: If there is none, or it is of no kind we know.
    """
    if isinstance(model, Checkpoint):
        return model
    source = source or Source()
    path = model_path(str(model), variant=source.variant, revision=source.revision)
    return open_checkpoint(
        path, variant=source.variant, allow_pickle=source.allow_pickle, tokenizer=source.tokenizer
    )


def erasure_path(path: Path) -> Path:
    """An erasure file, the one that belongs to an erased checkpoint, or a Hub id's, fetched.

    Raises:
        ValueError: If a Hub id cannot be had.
    """
    settle(path)
    beside = Checkpoint.erasure_file(path)
    return beside if path.is_dir() or beside.is_file() else local_file(path, ERASURE)


def load_erasure(erasure: Erasure | str | Path) -> Erasure:
    """An erasure, or the one in a file, in an erased checkpoint or on the Hub."""
    return erasure if isinstance(erasure, Erasure) else Erasure.load(erasure_path(Path(erasure)))


def check_output(out: Path, model: Checkpoint, run: Run) -> None:
    """Refuse, before any work, an output of the wrong kind or in the wrong place.

    Raises:
        ValueError: If it is of another kind than the model, or overlaps it.
        FileExistsError: If something stands there that must stay.
        OSError: If it would not fit on the disk.
    """
    if isinstance(model, SingleFile) and out.suffix != ".safetensors":
        raise ValueError(f"{model.path} is a single file, so --out must be one: {out}.safetensors")
    if not isinstance(model, SingleFile) and out.suffix == ".safetensors":
        raise ValueError(
            f"{model.path} is a folder, so --out is one, with its erasure file inside: "
            f"{out.with_suffix('')}"
        )
    check_apart(out, model.path)
    if not run.dry_run:
        settle(out)
        own = [Checkpoint.erasure_file(out)] if isinstance(model, SingleFile) else []
        for path in (out, *own, *([undo_file(out)] if run.keep_undo else [])):
            check_target(path, force=run.force)
        check_room(out, model.size())
