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
LEFT_BEHIND = (PROVENANCE, ERASURE, "report.md", "report.json", "before_after.png")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx")
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and its values rounded to float16.

    So a float32 checkpoint, its float16 variant and a pipeline loaded from either have one hash.
    """
    data = tensor.detach().half().cpu().contiguous().numpy().astype("<f2", copy=False)
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
            f.write(data.data)


@contextmanager
def atomic_path(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target`, whole, or disappears.

    Args:
        target: File or folder to create.
        force: Whether an existing one may be replaced.

    Raises:
        FileExistsError: If it exists and `force` is off.
    """
    check_target(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    old = draft.with_suffix(".old")
    try:
        yield draft
        _make_readable(draft)  # the safetensors library writes files that only their owner can read
        _sync(draft)
        if target.is_dir() and not draft.is_dir():
            raise FileExistsError(f"{target} is a folder; name a file")
        if os.path.lexists(target) and target.is_dir():
            os.rename(target, old)  # a folder that is not empty cannot be replaced by one call
            try:
                os.rename(draft, target)
            except BaseException:
                os.rename(old, target)
                raise
        elif draft.is_dir() or force:
            os.replace(draft, target)
        else:
            _place_new(draft, target)
        _sync_one(target.parent)
    finally:
        _discard(draft)
        if os.path.lexists(target):  # never the only copy
            _discard(old)


def _place_new(draft: Path, target: Path) -> None:
    try:
        os.link(draft, target)  # unlike a rename, fails if another writer came first
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(draft, target)


def check_target(target: Path, *, force: bool = False) -> None:
    """Refuse to write over what should stay; a folder is replaced only if this tool wrote it.

    Raises:
        FileExistsError: With what to do.
    """
    if not os.path.lexists(target):
        return
    if not force:
        raise FileExistsError(f"{target} exists; choose another --out or add --force")
    if target.is_dir() and any(target.iterdir()) and not (target / PROVENANCE).is_file():
        raise FileExistsError(f"{target} holds no {PROVENANCE}: it was not written by this tool and is not replaced")


def check_apart(out: Path, base: Path) -> None:
    """Refuse an output that is, holds or lies inside the base model."""
    a, b = out.resolve(), base.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise ValueError(f"--out {out} overlaps the base model {base}; choose a folder beside it")


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _make_readable(path: Path) -> None:
    """Give what was written the modes of any new file under the user's umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    for item in (path, *path.rglob("*")) if path.is_dir() else [path]:
        if not item.is_symlink():
            item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)


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
            settings = json.loads(config.read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError(f"{config} is not a model configuration")
            architecture = identify(settings)
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
        transformers may not load elsewhere. Other copies of the denoiser's weights (variants, pickles,
        single files) are left behind, since they would still hold the concept.
        """
        keep = self.denoiser_file.name

        def leave(folder: str, names: list[str]) -> set[str]:
            here = Path(folder)
            gone = {n for n in names if n == ".git" or n in LEFT_BEHIND}
            if here == self.path:
                gone |= {n for n in names if n.endswith(_WEIGHTS) and not (here / n).is_dir()}
            elif here == self.path / self.architecture.denoiser:
                gone |= {n for n in names if n.endswith((*_WEIGHTS, ".index.json")) and n != keep}
            return gone

        shutil.copytree(self.path, draft, symlinks=False, ignore=leave)
        _make_readable(draft)  # a read-only base gives read-only copies
        file = draft / self.denoiser_file.relative_to(self.path)
        overwrite_tensors(file, changed)
        (draft / PROVENANCE).write_text(json.dumps(provenance, indent=2, ensure_ascii=False), encoding="utf-8")
