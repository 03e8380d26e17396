"""Where models lie, and pipelines of them; nothing heavy is imported before it is asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erase_sd.models.checkpoint import Checkpoint

EMBEDDED = "emoji-sd"


def model_path(name: str, *, variant: str = "", revision: str | None = None) -> Path:
    """Where a model lies; `emoji-sd` is the embedded one, OWNER/NAME a Hub id unless it is a path."""
    if Path(name).exists():
        return Path(name)
    if name == EMBEDDED:
        from erase_sd.emoji.models import EMOJI_SD

        return EMOJI_SD
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return _download(name, variant, revision)
    return Path(name)


def _download(name: str, variant: str, revision: str | None) -> Path:
    """A Hub model's folder in the cache; only what diffusers itself would load."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    try:
        return Path(DiffusionPipeline.download(name, variant=variant or None, revision=revision, use_safetensors=True))
    except Exception as error:
        reason = re.split(r"[.(]\s", str(error).strip() or type(error).__name__, maxsplit=1)[0].strip()
        at = f" at revision {revision}" if revision else ""
        raise ValueError(f"no folder {name} here, and as a Hub id{at} it cannot be had: {reason}") from error


def is_embedded(path: Path) -> bool:
    """Whether a model is the embedded one, whose world the judge knows."""
    from erase_sd.emoji.models import EMOJI_SD

    return path.resolve() == EMOJI_SD.resolve()


def load_pipeline(model: Path | Checkpoint, *, variant: str = "", device: str = "cpu") -> Any:
    """A plain diffusers pipeline of a model on disk, float32 on the CPU."""
    import torch
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import logging as diffusers_logging

    from erase_sd.models.single_file import SingleFile

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    kind = device.split(":")[0]
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"no {kind} device here; use --device cpu")
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"expected --device cpu, cuda or mps, got {device!r}")
    if isinstance(model, SingleFile):
        single = StableDiffusionXLPipeline if model.kind == "sdxl" else StableDiffusionPipeline
        config = model.tokenizer if (Path(model.tokenizer) / "model_index.json").is_file() else None
        pipe = single.from_single_file(str(model.path), config=config, dtype=torch.float32)
    else:
        path = model if isinstance(model, Path) else model.path
        extra = {} if isinstance(model, Path) or model.architecture.name != "sd" else {"safety_checker": None}
        pipe = DiffusionPipeline.from_pretrained(
            path, dtype=torch.float32, variant=variant or None, local_files_only=True, **extra
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
