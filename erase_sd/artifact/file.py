"""The file of an erasure: tensors in safetensors, everything else as checked JSON in its metadata.

Text in a file is data: every field has a type, a length and a range, checked once, here. Sizes are
known from the header before memory is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from erase_sd._version import __version__
from erase_sd.models.architectures import TOKENS, by_name
from erase_sd.models.files import atomic_path
from erase_sd.models.tensor_files import dump_tensors

FORMAT = 2  # 1 had right sides alone, in float64, and multiplied strengths instead of a scale
WIDEST, MOST_CONCEPTS, MOST_PROMPTS, LONGEST_TEXT = 65_536, 4_096, 20_000, 100_000
LARGEST_FACTOR = 1e12  # of an entry; beyond that no weight stays finite


def dump(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of an erasure file: the same for the same content.

    Args:
        about: JSON-ready description.
        tensors: By name, each of its own memory.
    """
    text = json.dumps(
        {"format": FORMAT, "tool": f"erase-sd {__version__}", **about}, ensure_ascii=False
    )
    own = json.dumps({"about": text, "sha256": _digest(text, tensors)})
    return dump_tensors(tensors, {"erase_sd": own})


def write(path: Path, content: bytes, *, force: bool) -> Path:
    """Write it atomically."""
    with atomic_path(path, force=force) as draft:
        draft.write_bytes(content)
    return path


def stored(key: str, A: Tensor, B: Tensor) -> dict[str, Tensor]:
    """The tensors that hold two factors.

    Float32 if that is exact, and one of them if they are equal.
    """
    found = {f"{key}.{n}": _compact(x) for n, x in (("A", A), ("B", B))}
    if A.shape == B.shape and torch.equal(A, B):
        del found[f"{key}.A"]
    return found


def factors(tensors: Mapping[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """The two factors that `stored` stored."""
    B = tensors[f"{key}.B"]
    return tensors.get(f"{key}.A", B), B


def _compact(x: Tensor) -> Tensor:
    single = x.float()
    return (single if torch.equal(single.to(x.dtype), x) else x).clone().contiguous()


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a file's description and tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        data = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + data)
    return digest.hexdigest()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checked description and the tensors of an erasure file, of this format or an older one.

    Returns:
        The fields of `Erasure`, with `concepts` as a list of fields of `ErasedConcept` in which
        `right` and `left` are lists of names; and the tensors.

    Raises:
        ValueError: If the file is missing, damaged, hostile or of a newer format.
    """
    if not path.is_file():
        raise ValueError(f"no such erasure file: {path}")
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118
            if any(len(s) != 2 or s[0] > WIDEST or s[1] > min(s[0], 4096) for s in shapes.values()):
                raise ValueError(
                    f"{path} is malformed: expected factors of at most {WIDEST} rows, rank within "
                    "the width"
                )
            text, checksum, about = _description(metadata, path)
            tensors = {k: f.get_tensor(k) for k in shapes}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {str(error)[:200]}") from error
    if checksum != _digest(text, tensors):
        raise ValueError(f"{path} is damaged or was altered: its checksum does not match")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool((tensor.abs() <= LARGEST_FACTOR).all()):
            raise ValueError(
                f"{path} is malformed: {_short(name)} holds values that leave no finite weight"
            )
    try:
        return _checked(about, shapes), tensors
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a complete erasure file: {_short(error)} is missing or malformed"
        ) from error


def _description(metadata: Mapping[str, str], path: Path) -> tuple[str, str, dict[str, Any]]:
    """Its text, its checksum, and what it says."""
    try:
        own = json.loads(metadata["erase_sd"])
        if isinstance(own, dict) and isinstance(own.get("about"), str):
            text, checksum = own["about"], str(own.get("sha256"))
            own = json.loads(text)
        else:  # format 1
            text, checksum = metadata["erase_sd"], metadata.get("sha256", "")
    except (KeyError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not an erasure file of erase-sd") from error
    if not isinstance(own, dict) or type(own.get("format")) is not int:
        raise ValueError(f"{path} is not an erasure file of erase-sd")
    if own["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {own['format']}, this version reads up to {FORMAT}: upgrade"
        )
    return text, checksum, own


def _checked(about: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every field with its type, length and range.

    What is wrong is named by a KeyError or a ValueError.
    """
    architecture = by_name(_text(about, "architecture"))
    if about["kinds"] not in ("k", "v", "kv"):
        raise ValueError("kinds")
    if not isinstance(about["concepts"], list) or len(about["concepts"]) > MOST_CONCEPTS:
        raise ValueError("concepts")
    base = about["base"]
    if not isinstance(base, dict) or not all(
        re.fullmatch(r"[0-9a-f]{64}", str(v)) for v in base.values()
    ):
        raise ValueError("base")
    concepts = [_concept(entry, about["format"]) for entry in about["concepts"]]
    for i, concept in enumerate(concepts):
        if TOKENS not in concept["right"] or set(concept["right"]) - set(architecture.patterns):
            raise ValueError("right")
        if any(
            (site := architecture.site(n)) is None or not site.writes_values
            for n in concept["left"]
        ):
            raise ValueError("left")
        for key in [f"{i}.{s}" for s in concept["right"]] + [
            f"{i}.left.{n}" for n in concept["left"]
        ]:
            if shapes.get(f"{key}.A", shapes[f"{key}.B"]) != shapes[f"{key}.B"]:
                raise ValueError(key)
    return {
        "architecture": architecture.name,
        "kinds": about["kinds"],
        "scale": _number(about.get("scale", 1.0), "scale", -100, 100),
        "text_encoder": _text(about, "text_encoder"),
        "base": {str(name): str(value) for name, value in base.items()},
        "concepts": concepts,
    }


def _concept(entry: Mapping[str, Any], version: int) -> dict[str, Any]:
    right = entry["streams"] if version == 1 else entry["right"]
    contexts = _texts(entry, "contexts")
    if any(c.count("{}") != 1 or set(c.replace("{}", "")) & set("{}") for c in contexts):
        raise ValueError("contexts")  # they are format strings
    for name in ("options", "certificate"):
        if not isinstance(entry[name], dict) or not _plain(entry[name], 4):
            raise ValueError(name)
    return {
        "name": _text(entry, "name", 200),
        "right": list(_strings(right, "right")),
        "left": list(_strings(entry.get("left", []), "left")),
        "forget": _texts(entry, "forget"),
        "retain": _texts(entry, "retain"),
        "method": _text(entry, "method", 200),
        "tokens": _text(entry, "tokens", 200),
        "contexts": contexts,
        "layers": _layers(entry.get("layers", [])),
        "strength": _number(entry["strength"], "strength", 0, 100),
        "options": entry["options"],
        "certificate": _certificate(entry["certificate"], list(right)),
    }


def _certificate(told: Any, streams: Sequence[str] = ()) -> dict[str, Any]:
    """Numbers by name: a list of them, some for each prompt, and those of each other stream."""
    if not isinstance(told, dict) or len(told) > MOST_CONCEPTS:
        raise ValueError("certificate")
    for name, value in told.items():
        if name in streams:
            _certificate(value)
            continue
        kind = {"spectrum": list, "retain_contradicts": dict}.get(name, float)
        numbers = [value] if kind is float else value
        if kind is not float and not isinstance(value, kind):
            raise ValueError(f"certificate: {_short(name)}")
        for one in numbers.values() if isinstance(numbers, dict) else numbers:
            _number(one, f"certificate: {_short(name)}", -1e100, 1e100)
    return dict(told)


def _text(entry: Mapping[str, Any], name: str, longest: int = 4_000) -> str:
    value = entry[name]
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        raise ValueError(name)
    return value


def _texts(entry: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return _strings(entry[name], name)


def _strings(values: Any, name: str) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) > MOST_PROMPTS:
        raise ValueError(name)
    if not all(isinstance(v, str) and len(v) <= LONGEST_TEXT for v in values):
        raise ValueError(name)
    return tuple(values)


def _layers(values: Any) -> tuple[int, ...]:
    known = isinstance(values, list) and len(values) <= 8
    if not known or not all(type(v) is int and -100 <= v < 0 for v in values):
        raise ValueError("layers")
    return tuple(values)


def _number(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(name)
    return float(value)


def _plain(value: Any, depth: int) -> bool:
    """Whether a value is JSON of little depth, its numbers finite and its texts short."""
    if isinstance(value, dict):
        return (
            depth > 0
            and len(value) <= MOST_CONCEPTS
            and all(isinstance(k, str) and _plain(v, depth - 1) for k, v in value.items())
        )
    if isinstance(value, list):
        return depth > 0 and len(value) <= 10_000 and all(_plain(v, depth - 1) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return (
        value is None
        or isinstance(value, (bool, int))
        or (isinstance(value, str) and len(value) <= 4_000)
    )


def _short(value: object) -> str:
    return "".join(c for c in str(value)[:80] if c.isprintable())
