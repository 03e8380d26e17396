"""Pickled state dicts, read by torch's loader of tensors alone, on request."""

from __future__ import annotations

import atexit
import pickle
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file


def unpickled(path: Path) -> Path:
    """A safetensors copy, for this process, of a pickled state dict.

    Tensors alone are read, no code runs.

    Raises:
        ValueError: If it holds anything else, or is damaged.
    """
    folder = Path(tempfile.mkdtemp(prefix="erase-sd-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = folder / f"{path.stem}.safetensors"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} holds more than tensors, or is damaged: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict")
    tensors = {
        str(k): v.contiguous().clone() for k, v in state.items() if isinstance(v, torch.Tensor)
    }
    save_file(tensors, target, metadata={"format": "pt"})
    return target
