"""The weight files of one network of a diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a configuration.

    Raises:
        ValueError: If it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a model's configuration")
    return value


def index_name(variant: str) -> str:
    """Name of the file that tells which shard holds which tensor."""
    return f"diffusion_pytorch_model.safetensors.index{'.' + variant if variant else ''}.json"


def network_files(folder: Path, variant: str) -> list[Path]:
    """A network's one file, or the shards that its index names.

    Raises:
        ValueError: If there is neither, or a shard is missing.
    """
    middle = f".{variant}" if variant else ""
    file = folder / f"diffusion_pytorch_model{middle}.safetensors"
    if file.is_file():
        return [file]
    index = folder / index_name(variant)
    if not index.is_file():
        have = ", ".join(sorted(p.name for p in folder.glob("*model*"))) or "nothing"
        raise ValueError(f"{folder} holds {have}; expected {file.name} (safetensors only)")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} has no weight_map")
    names = sorted({str(s) for s in shards.values()})
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index} names {name!r}: shards are .safetensors files of the same folder"
            )
        if not (folder / name).is_file():
            raise ValueError(f"{index} names {name}, which is missing: the download is incomplete")
    return [folder / name for name in names]
