"""Which text encoders a model has: one hash, from the loaded ones or straight from the files.

Reading it from the files needs neither transformers nor a forward pass, so applying an erasure to a
checkpoint stays a matter of bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch import Tensor

from erase_sd.models.checkpoint import Checkpoint, DiffusersFolder
from erase_sd.models.ldm_names import TEXT_KEYS
from erase_sd.models.openclip_names import from_openclip, is_spare
from erase_sd.models.single_file import SingleFile
from erase_sd.models.tensor_files import float_names, stream_tensors
from erase_sd.models.towers import Tower
from erase_sd.text.towers import decoder_name

Source = tuple[Path, str, Callable[[Tensor], Tensor]]  # file, name in it, what to take of it


def fingerprint(towers: Iterable[Iterable[tuple[str, Tensor]]]) -> str:
    """SHA-256 over the weights' names, shapes and values rounded to float16 (as `tensor_hash`).

    So a float32 encoder and its float16 variant have one fingerprint. What the denoiser's own norm
    makes of the features belongs to it.

    Args:
        towers: For each encoder its float tensors sorted by name, without `text_model.`.
    """
    digest = hashlib.sha256()
    for tower in towers:
        for name, value in tower:
            digest.update(f"{name}{tuple(value.shape)}".encode())
            for chunk in value.detach().flatten().split(1 << 22):  # not the whole table twice over
                digest.update(chunk.half().cpu().numpy().data)
    return digest.hexdigest()


def fingerprint_of(checkpoint: Checkpoint) -> str:
    """The fingerprint of a checkpoint's text encoders, from its files alone.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    norm = checkpoint.norm()
    towers: list[Iterable[tuple[str, Tensor]]] = [_read(s) for s in _sources(checkpoint)]
    return fingerprint(towers if norm is None else [*towers, [("norm", norm.float())]])


def _read(sources: dict[str, Source]) -> Iterator[tuple[str, Tensor]]:
    for name, (path, stored, take) in sorted(sources.items()):
        for _, value in stream_tensors(path, names=[stored]):
            yield name, take(value)


def _sources(checkpoint: Checkpoint) -> Iterator[dict[str, Source]]:
    towers = checkpoint.architecture.towers
    if isinstance(checkpoint, SingleFile):
        for (prefix, scheme), spec in zip(TEXT_KEYS[checkpoint.kind], towers, strict=True):
            own = [
                n.removeprefix(prefix) for n in float_names(checkpoint.path) if n.startswith(prefix)
            ]
            yield _named(checkpoint.path, own, spec, prefix=prefix, openclip=scheme == "openclip")
    elif isinstance(checkpoint, DiffusersFolder):
        for spec in towers:
            found: dict[str, Source] = {}
            for file in _files(checkpoint.path / f"text_encoder{spec.suffix}", checkpoint.variant):
                found |= _named(file, float_names(file), spec)
            if (
                spec.kind in ("t5", "umt5") and "shared.weight" in found
            ):  # one table under two names
                found.setdefault("encoder.embed_tokens.weight", found["shared.weight"])
            yield found
    else:
        raise ValueError(f"expected a folder or a single file, got {type(checkpoint).__name__}")


def _named(
    path: Path, names: Iterable[str], spec: Tower, *, prefix: str = "", openclip: bool = False
) -> dict[str, Source]:
    """Where each tensor that the loaded encoder would have is stored."""
    found: dict[str, Source] = {}
    for name in names:
        if openclip and spec.layer == -1 and is_spare(name):
            continue
        if spec.kind == "llm":
            if inside := decoder_name(name):
                found[inside] = (path, name, _whole)
            continue
        for new, take in from_openclip(name) if openclip else [(name, _whole)]:
            new = new.removeprefix("text_model.")
            if new != "text_projection.weight" or spec.pooled == "text_embeds":
                found[new] = (path, prefix + name, take)
    return found


def _whole(value: Tensor) -> Tensor:
    return value


def _files(folder: Path, variant: str) -> list[Path]:
    """The safetensors files of a text encoder: one, or its shards."""
    middle = f".{variant}" if variant and any(folder.glob(f"*.{variant}*.safetensors*")) else ""
    one = folder / f"model{middle}.safetensors"
    shards = sorted(folder.glob(f"model{middle}-*-of-*.safetensors"))
    files = [one] if one.is_file() else [s for s in shards if middle or s.name.count(".") == 1]
    if not files:
        raise ValueError(
            f"{folder} has no model{middle}.safetensors, which this architecture reads"
        )
    return files
