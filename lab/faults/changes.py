"""How bytes, JSON and safetensors headers are changed: cut, spliced, lied about."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (None, True, 0, -1, 1, 2**63, 1e308, -1e-320, float("nan"),
    float("inf"), "", "x", "x" * 5_000, "\x1b[2J", "\ud800", "{0.__class__}",
    "{:0>3000000000}", "{}", "../../x", "/etc/passwd", "<script>", [], [[]], [None],
    ["x"] * 500, {}, {"x": {"y": {"z": {"a": {"b": 1}}}}}, {"": []}, "cat", "a" + "\u0301" * 99,
    10**400, "true", "1e999", )  # fmt: skip
LETTERS = (b"\x00", b"\xff", b"{", b"}", b"[", b"]", b'"', b"&a", b"*a", b": ",
    b"- ", b"!!python/object:os.system x", b"\n", b"\t", b"<<: *a", b"9" * 50, b"%s",
    b"\\ud800", b"---\n", b"~", b"0o7", b"2001-99-99", b".inf")  # fmt: skip


def bytes_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flipped, spliced or repeated."""
    broken = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(broken) + 1))
        kind = int(rng.integers(5))
        if kind == 0:
            del broken[at:]
        elif kind == 1 and at < len(broken):
            broken[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            broken[at:at] = LETTERS[int(rng.integers(len(LETTERS)))]
        elif kind == 3:
            del broken[at : at + int(rng.integers(1, 200))]
        else:
            broken[at:at] = broken[at : at + int(rng.integers(1, 500))] * int(rng.integers(1, 9))
    return bytes(broken)


def value_changed(value: Any, rng: np.random.Generator) -> Any:
    """JSON with one value somewhere replaced, gone or doubled."""
    value = json.loads(json.dumps(value))
    at = value
    for _ in range(12):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        if rng.random() < 0.15:
            del at[key]
        else:
            at[key] = ODD[int(rng.integers(len(ODD)))]
        break
    return value


def header_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file whose header lies."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kind = int(rng.integers(8))
    if kind == 0:
        size = int(rng.choice([0, 1, length - 1, length + 1, 1 << 32, (1 << 63) - 1]))
        return struct.pack("<Q", size) + data[8:]
    if kind == 1:
        text = [b"[" * 100_000, b"{}", b"\xff" * length, b'{"a":' * 9_000][int(rng.integers(4))]
        return struct.pack("<Q", len(text)) + text + data[8 + length :]
    name = list(header)[int(rng.integers(len(header)))]
    if kind == 2:
        header = value_changed(header, rng)
    elif kind == 3:
        header[f"x{name}"] = header[name]  # a second claim on the same bytes
    elif kind == 4 and name != "__metadata__":
        shape = [[1 << 40, 1 << 40], [0], [-1], [1 << 63], [[1]], [1.5], ["1"], []]
        header[name] = header[name] | {"shape": shape[int(rng.integers(len(shape)))]}
    elif kind == 5 and name != "__metadata__":
        other = str(rng.choice(["F64", "F13", "I64", "BOOL", "F8_E4M3", "", "f32", "U16"]))
        header[name] = header[name] | {"dtype": other}
    elif kind == 6:
        header["x." + "9" * int(rng.integers(1, 40)) + ".weight"] = header.pop(name)
    else:
        ranges = [[0, 1 << 60], [-8, 0], [8, 0], [0, 0], [1 << 63, 1 << 63], [0.5, 1], "x", [0]]
        header[name] = {"dtype": "F32", "shape": [2], "data_offsets": ranges[int(rng.integers(8))]}
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
