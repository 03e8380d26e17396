"""Where models lie, what is usual for them, and pipelines of them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from erase_sd.models.checkpoint import Checkpoint
from erase_sd.models.embedded import EMBEDDED_MODELS
from erase_sd.models.hub import in_a_line, is_hub_id
from erase_sd.models.network_files import read_json
from erase_sd.models.single_file import SingleFile

DEVICES = ("cpu", "cuda", "mps")


def model_path(name: str, *, variant: str = "", revision: str | None = None) -> Path:
    """Where a model lies; `emoji-sd` is the embedded one, OWNER/NAME a Hub id unless it is a path.

    Args:
        name: Path, name of an embedded model, or Hub id.
        variant: Variant of a Hub id's weights, such as fp16.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        ValueError: If a Hub id cannot be had.

    >>> model_path("emoji-sd").name
    'emoji-sd'
    """
    if Path(name).exists():
        return Path(name)
    if name in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[name].path
    if is_hub_id(name):
        return _download(name, variant, revision)
    return Path(name)


def _download(name: str, variant: str, revision: str | None) -> Path:
    """A Hub model's folder in the cache; only what diffusers itself would load."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    at = f" at revision {revision}" if revision else ""
    with in_a_line(f"no folder {name} here, and as a Hub id{at} it cannot be had"):
        return Path(
            DiffusionPipeline.download(
                name,
                variant=variant or None,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
            )
        )


def check_device(device: str) -> None:
    """Refuse a device that is not here.

    Raises:
        ValueError: Naming one that is.

    >>> check_device("cpu")
    """
    import torch

    kind = device.split(":")[0]
    if kind not in DEVICES:
        raise ValueError(
            f"expected --device {', '.join(DEVICES[:-1])} or {DEVICES[-1]}, got {device!r}"
        )
    here: dict[str, bool] = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here[kind]:
        raise ValueError(f"no {kind} device here; use --device cpu")


def check_parts(folder: Path) -> None:
    """Refuse a `model_index.json` that names anything but classes of diffusers and transformers.

    Args:
        folder: A diffusers folder.

    Raises:
        ValueError: With the first name that is wrong.

    >>> check_parts(model_path("emoji-sd"))
    """
    import diffusers
    import transformers

    index = read_json(folder / "model_index.json")
    name = str(index.get("_class_name"))
    if not _is_class(diffusers, name):
        raise ValueError(f"{folder}: expected a pipeline of diffusers, got {ascii(name)[:80]}")
    parameters = inspect.signature(getattr(diffusers, name)).parameters
    libraries = {"diffusers": diffusers, "transformers": transformers}
    for part, names in index.items():
        if part not in parameters or names == [None, None]:
            continue
        if not isinstance(names, list) and parameters[part].default is not inspect.Parameter.empty:
            continue  # a setting of the pipeline, no part
        library, kind = names if isinstance(names, list) and len(names) == 2 else (None, None)
        module = libraries.get(library) if isinstance(library, str) else None
        # A pipeline's own folder, as of its safety checker.
        module = module or getattr(diffusers.pipelines, str(library), None)
        if not _is_class(module, kind):
            told = f"expected a class of diffusers or transformers as {part}"
            raise ValueError(f"{folder}: {told}, got {ascii(names)[:80]}")


def _is_class(module: Any, name: Any) -> bool:
    return isinstance(name, str) and isinstance(getattr(module, name, None), type)


def load_pipeline(model: Path | Checkpoint, *, variant: str = "", device: str = "cpu") -> Any:
    """A plain diffusers pipeline of a model on disk, float32.

    Args:
        model: A diffusers folder, or any checkpoint.
        variant: Variant of the weights' files.
        device: cpu, cuda, cuda:1 or mps.

    Raises:
        ValueError: If the device is not here.
    """
    import torch
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    check_device(device)
    if isinstance(model, SingleFile):
        model.check_reads()
        single = StableDiffusionXLPipeline if model.kind == "sdxl" else StableDiffusionPipeline
        inside = (Path(model.tokenizer) / "model_index.json").is_file()
        config = model.tokenizer if inside else None
        pipe = single.from_single_file(str(model.path), config=config, dtype=torch.float32)
    else:
        path = model if isinstance(model, Path) else model.path
        check_parts(path)
        plain = isinstance(model, Path) or model.architecture.name != "sd"
        pipe = DiffusionPipeline.from_pretrained(
            path,
            dtype=torch.float32,
            variant=variant or None,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **({} if plain else {"safety_checker": None}),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
