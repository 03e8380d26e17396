"""Pickled state dicts, read by torch's loader of tensors alone, on request."""

from __future__ import annotations

import atexit
import pickle
import tempfile
from pathlib import Path

import torch

from erase_sd.models.leftovers import sweep
from erase_sd.models.staging import Staging
from erase_sd.models.tensor_files import write_tensors


def unpickled(path: Path) -> Path:
    """A safetensors copy, for this process, of a pickled state dict.

    Tensors alone are read, no code runs.

    Raises:
        ValueError: If it holds anything else, or is damaged.
    """
    place = Path(tempfile.gettempdir())
    sweep(place)
    staging = Staging(place)
    atexit.register(staging.close)
    target = staging.path / f"{path.stem}.safetensors"
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
    write_tensors(target, tensors, {"format": "pt"})
    return target
