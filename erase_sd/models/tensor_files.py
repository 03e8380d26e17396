"""Tensors of safetensors files by byte range: nothing else is deserialised or mapped for long."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

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
    _regular(path)
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
    _regular(path)
    try:
        with safe_open(path, "pt") as f:
            return list(f.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not an intact safetensors file: {error!s:.300}") from error


def _regular(path: Path) -> None:
    """Refuse pipes and devices, whose opening or reading has no end."""
    if not path.is_file():
        raise ValueError(f"{path} is no regular file")


_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def float_names(path: Path) -> list[str]:
    """Names of the float tensors of a safetensors file.

    Raises:
        ValueError: If it is damaged.
    """
    tensor_names(path)  # the library checks header and ranges
    header, _ = _header(path)
    return [n for n, about in header.items() if n != "__metadata__" and about["dtype"] in _FLOATS]


def stream_tensors(
    path: Path, *, prefix: str = "", names: Iterable[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Float tensors of a safetensors file one after another, without mapping the file into memory.

    A mapping counts as memory for as long as one tensor of it lives; a tensor read here is all
    there is.

    Args:
        path: An intact file.
        prefix: Only names that begin so; it is cut off.
        names: Which, in this order, prefix included; default: all, in the file's order.

    Raises:
        ValueError: If it is damaged.
    """
    names = float_names(path) if names is None else names
    header, start = _header(path)
    with open(path, "rb") as f:
        for name in names:
            if not name.startswith(prefix):
                continue
            about = header[name]
            begin, end = about["data_offsets"]
            f.seek(start + begin)
            buffer = bytearray(end - begin)
            if f.readinto(buffer) != len(buffer):
                raise ValueError(f"{path} is truncated at {name}")
            flat = (
                torch.frombuffer(buffer, dtype=_FLOATS[about["dtype"]])
                if buffer
                else torch.zeros(0)
            )
            yield name.removeprefix(prefix), flat.view(about["shape"])


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begin."""
    with open(path, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path}: header of {length} bytes is too long to be true")
        return json.loads(f.read(length)), 8 + length


def overwrite_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite tensors of a safetensors file where they lie; same names, dtypes and shapes.

    Only ever called on a copy under a temporary name.
    """
    header, start = _header(path)
    with open(path, "r+b") as f:
        for name, tensor in tensors.items():
            begin, end = header[name]["data_offsets"]
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            if len(data) != end - begin:
                raise ValueError(f"{name}: expected {end - begin} bytes, got {len(data)}")
            f.seek(start + begin)
            f.write(data.data)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a new safetensors file.

    Args:
        path: A temporary path.
        tensors: By name, each of its own memory.
        metadata: Text by name.

    Raises:
        OSError: If the disk is full, or fails.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata or {}))
    except SafetensorError as error:
        raise OSError(f"cannot write the tensors: {error}") from error


def dump_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file, the same for the same content.

    The library writes metadata in an order that changes from run to run.

    Args:
        tensors: By name, each of its own memory.
        metadata: Text by name.
    """
    content = save(dict(tensors), metadata=dict(metadata))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(dict(sorted(header.items())), separators=(",", ":"), ensure_ascii=False)
    raw = text.encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + content[8 + length :]
