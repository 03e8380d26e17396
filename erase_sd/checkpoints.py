"""Checkpoints without a pipeline: read some tensors, write a copy with those tensors replaced.

Nothing is deserialised but safetensors. What a run writes stands under a temporary name until it is
complete and synced, and then takes its place by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.sites import Architecture, identify

PROVENANCE = "erasure.json"  # beside model_index.json; diffusers ignores it
ERASURE = "erasure.safetensors"
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and its values as float32.

    float16 and bfloat16 are exact in float32, so a checkpoint and its upcast copy have one hash.
    """
    data = tensor.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + data.tobytes()).hexdigest()


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Load some tensors of a safetensors file by byte range.

    Raises:
        ValueError: If the file is damaged or lacks one of them.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            return {name: f.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def tensor_names(path: Path) -> list[str]:
    """All tensor names of a safetensors file.

    Raises:
        ValueError: If it is not one, or is truncated.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as f:
            return list(f.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not an intact safetensors file: {error}") from error


def overwrite_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite tensors of a safetensors file where they lie; same names, dtypes and shapes.

    Only ever called on a copy under a temporary name.
    """
    with open(path, "r+b") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path}: header of {length} bytes is too long to be true")
        header = json.loads(f.read(length))
        for name, tensor in tensors.items():
            begin, end = header[name]["data_offsets"]
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            if len(data) != end - begin:
                raise ValueError(f"{name}: expected {end - begin} bytes, got {len(data)}")
            f.seek(8 + length + begin)
            f.write(memoryview(data))


@contextmanager
def atomic_path(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target`, whole, or disappears.

    Args:
        target: File or folder to create.
        force: Whether an existing one may be replaced.

    Raises:
        FileExistsError: If it exists and `force` is off.
    """
    if os.path.lexists(target) and not force:
        raise FileExistsError(f"{target} exists; choose another --out or add --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    old = draft.with_suffix(".old")
    try:
        yield draft
        _make_readable(draft)  # the safetensors library writes files that only their owner can read
        _sync(draft)
        if target.is_dir() and not target.is_symlink():
            os.rename(target, old)  # a folder cannot be replaced by one call
            try:
                os.rename(draft, target)
            except BaseException:
                os.rename(old, target)
                raise
        else:
            os.replace(draft, target)
        _sync_one(target.parent)
    finally:
        for leftover in (draft, old):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _make_readable(path: Path) -> None:
    for item in (path, *path.rglob("*")) if path.is_dir() else [path]:
        item.chmod(0o755 if item.is_dir() else 0o644)


def _sync(path: Path) -> None:
    for item in sorted(path.rglob("*")) if path.is_dir() else []:
        _sync_one(item)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write a small text file atomically."""
    with atomic_path(path, force=force) as draft:
        draft.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class DiffusersFolder:
    """A diffusers checkpoint on disk.

    Attributes:
        path: The folder with `model_index.json`.
        architecture: What it is.
        variant: "" or a variant such as "fp16".
    """

    path: Path
    architecture: Architecture
    variant: str = ""

    @classmethod
    def open(cls, path: str | Path, *, variant: str = "") -> DiffusersFolder:
        """Look at a folder without loading a tensor.

        Raises:
            ValueError: If it is no diffusers checkpoint, or one we do not know.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"no such model: {path}")
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} is not a diffusers checkpoint: it has no model_index.json")
        config = path / "unet" / "config.json"
        try:
            architecture = identify(json.loads(config.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: cannot read unet/config.json: {error}") from error
        return cls(path, architecture, variant)

    @property
    def denoiser_file(self) -> Path:
        """The safetensors file of the denoiser."""
        middle = f".{self.variant}" if self.variant else ""
        folder = self.path / self.architecture.denoiser
        file = folder / f"diffusion_pytorch_model{middle}.safetensors"
        if not file.is_file():
            have = ", ".join(sorted(p.name for p in folder.glob("*model*"))) or "nothing"
            raise ValueError(f"{folder} holds {have}; expected {file.name} (safetensors only)")
        return file

    def sites(self, *, kinds: str = "kv") -> list[str]:
        """Names of the tensors an edit goes to."""
        return self.architecture.sites(tensor_names(self.denoiser_file), kinds=kinds)

    def weights(self, *, kinds: str = "kv") -> dict[str, Tensor]:
        """Those tensors, in the file's dtype."""
        return read_tensors(self.denoiser_file, self.sites(kinds=kinds))

    def size(self) -> int:
        """Bytes a copy takes."""
        return sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())

    def write_copy(self, draft: Path, changed: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Copy the folder to `draft`, replace the changed tensors, add `erasure.json`.

        What did not change is copied byte for byte: a text encoder re-saved by another version of
        transformers may not load elsewhere.
        """
        shutil.copytree(self.path, draft, symlinks=False, ignore=shutil.ignore_patterns(".git", "erasure.*"))
        _make_readable(draft)  # a read-only base gives read-only copies
        file = draft / self.denoiser_file.relative_to(self.path)
        overwrite_tensors(file, changed)
        (draft / PROVENANCE).write_text(json.dumps(provenance, indent=2, ensure_ascii=False), encoding="utf-8")
