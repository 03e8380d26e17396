"""How far a variant's pictures are from the original's, one by one and as sets, and from real ones.

As sets they are compared over what should stay; each group, and each class of real pictures, has a
number of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erase_sd.eval.detectors import open_images
from erase_sd.eval.features import extract, lpips
from erase_sd.eval.metrics import cmmd, frechet_distance, kernel_distance, pixel_change
from erase_sd.eval.protocol import Protocol
from erase_sd.eval.run_folder import ORIGINAL
from erase_sd.eval.scores import by_role

DISTANCES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "frechet": frechet_distance, "kid": kernel_distance, "cmmd": cmmd
}  # fmt: skip
CHANGES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "drift": pixel_change, "lpips": lpips
}  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def pictures_in(folder: Path) -> dict[str, list[Path]]:
    """Pictures of a folder by class, the name of their sub-folder; "" for those outside any.

    Raises:
        ValueError: If there are fewer than two.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES:
            parts = path.relative_to(folder).parts
            found.setdefault(parts[0] if len(parts) > 1 else "", []).append(path)
    count = sum(len(paths) for paths in found.values())
    if count < 2:
        raise ValueError(f"expected real pictures ({', '.join(PICTURES)}) in {folder}, got {count}")
    return found


def distances_of(
    protocol: Protocol, paths: Mapping[str, Sequence[Path]], real: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Distances of every variant's pictures to the original's, and to real ones.

    Args:
        protocol: Names the metrics and the extractor.
        paths: Pictures of each variant, in the order of the protocol's rows; the original's too.
        real: Folder of real pictures.
    """
    changes = {n: f for n, f in CHANGES.items() if n in protocol.metrics}
    distances = {n: f for n, f in DISTANCES.items() if n in protocol.metrics}
    if not changes and not distances:
        return {}

    def look(name: str) -> tuple[np.ndarray, np.ndarray | None]:
        images = open_images(paths[name])
        pixels = [np.asarray(i, np.float32) / 255 for i in images] if changes else []
        return np.array(pixels), extract(protocol.features, images) if distances else None

    base_pixels, base_features = look(ORIGINAL)
    references = _references(protocol.features, real) if real is not None and distances else {}
    numbers: dict[str, dict[str, Any]] = {}
    for name in paths:
        pixels, features = look(name)
        found: dict[str, Any] = {
            n: by_role(change(pixels, base_pixels), protocol.rows) for n, change in changes.items()
        }
        if base_features is not None and features is not None:
            for n, distance in distances.items():
                told = _to_original(protocol, features, base_features, distance)
                found[f"{n} to the original"] = told
                if references:
                    found[f"{n} to real"] = _to_real(protocol, features, references, distance)
        numbers[name] = found
    return numbers


def _references(features: str, real: Path) -> dict[str, np.ndarray]:
    """Features of real pictures, by class."""
    return {kind: extract(features, open_images(p)) for kind, p in pictures_in(real).items()}


def _kept(protocol: Protocol) -> np.ndarray:
    """Which rows count, `(n,)`: what should stay, or all where nothing should."""
    stays = np.array([r.role != "forget" for r in protocol.rows])
    return stays if stays.any() else np.ones(len(stays), bool)


def _parts(
    masks: Mapping[str, np.ndarray],
    features: np.ndarray,
    others: Callable[[str], np.ndarray],
    distance: Callable[[np.ndarray, np.ndarray], float],
) -> dict[str, float]:
    """The distance of each part of the pictures; those of fewer than two are left out."""
    return {
        name: round(distance(others(name), features[mask]), 6)
        for name, mask in masks.items()
        if mask.sum() > 1 and len(others(name)) > 1
    }


def _to_original(
    protocol: Protocol,
    features: np.ndarray,
    base: np.ndarray,
    distance: Callable[[np.ndarray, np.ndarray], float],
) -> dict[str, Any]:
    keep = _kept(protocol)
    groups = np.array([r.group for r in protocol.rows])
    masks = {g: keep & (groups == g) for g in protocol.groups}
    value = round(distance(base[keep], features[keep]), 6)
    each = _parts(masks, features, lambda g: base[masks[g]], distance)
    told: dict[str, Any] = {"value": value, "images": int(keep.sum()), "groups": each}
    if (~keep).sum() > 1:  # is what appears instead a picture of this world?
        told["forgotten to the rest"] = round(distance(base[keep], features[~keep]), 6)
    return told


def _to_real(
    protocol: Protocol,
    features: np.ndarray,
    references: Mapping[str, np.ndarray],
    distance: Callable[[np.ndarray, np.ndarray], float],
) -> dict[str, Any]:
    """Over what stays, over everything drawn (as SalUn's tables have it), and class by class."""
    keep, everything = _kept(protocol), np.concatenate(list(references.values()))
    wants = np.array([r.want for r in protocol.rows])
    masks = {c: keep & (wants == c) for c in references if c}
    return {
        "value": round(distance(everything, features[keep]), 6),
        "everything": round(distance(everything, features), 6),
        "images": int(keep.sum()),
        "real images": len(everything),
        "classes": _parts(masks, features, lambda c: references[c], distance),
    }
