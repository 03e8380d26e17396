"""Look at a model on disk, whatever its form."""

from __future__ import annotations

from pathlib import Path

from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.models.pickled import unpickled
from erase_sd.models.placing import settle
from erase_sd.models.safety import is_pickle
from erase_sd.models.single_file import TOKENIZER, SingleFile


def open_checkpoint(
    path: str | Path, *, variant: str = "", allow_pickle: bool = False, tokenizer: str = TOKENIZER
) -> DiffusersFolder | SingleFile:
    """Look at a model on disk, whatever its form.

    Args:
        path: Diffusers folder, single `.safetensors`, or, if allowed, a `.ckpt`.
        variant: Weights variant of a folder.
        allow_pickle: Read a pickle, by torch's loader of weights alone.
        tokenizer: For single files: folder or Hub id of the tokenizer.

    Raises:
        ValueError: If it is none of these.
    """
    path = Path(path)
    settle(path)
    if path.is_dir():
        return DiffusersFolder.open(path, variant=variant)
    if not path.exists():
        raise ValueError(f"no such model: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")
    if is_pickle(path.name):
        if not allow_pickle:
            raise ValueError(
                f"{path} is a pickle, which can carry code; --allow-pickle reads its tensors by "
                "torch's safe loader"
            )
        path = unpickled(path)
    return SingleFile.open(path, tokenizer=tokenizer)
