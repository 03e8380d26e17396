"""Which model an erasure belongs to.

Hashes of the tensors it edits, and the refusal of any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from erase_sd.algebra.moments import check_dense
from erase_sd.models.architectures import TOKENS, Architecture, Stream
from erase_sd.models.tensor_files import tensor_hash

_EITHER_WAY = "--allow-other-base (allow_other_base=True) goes on all the same"


class WrongBase(ValueError):
    """The erasure was made for another model."""


def hashes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor by its name, sorted."""
    return {name: tensor_hash(w) for name, w in sorted(weights.items())}


def check_base(base: Mapping[str, str], weights: Mapping[str, Tensor]) -> None:
    """Refuse another base.

    Args:
        base: Expected hash of each tensor.
        weights: The tensors at hand; others than those in `base` do not matter.

    Raises:
        WrongBase: With what differs.
    """
    if not base:
        raise WrongBase(f"this erasure names no base weights; {_EITHER_WAY}")
    missing = sorted(set(base) - set(weights))
    if missing:
        raise WrongBase(f"this base lacks {len(missing)} of {len(base)} tensors, e.g. {missing[0]}")
    differ = [n for n, h in base.items() if tensor_hash(weights[n]) != h]
    if differ:
        raise WrongBase(
            f"this erasure was made for another base: {len(differ)} of {len(base)} tensors differ, "
            f"e.g. {differ[0]}; {_EITHER_WAY}"
        )


def check_scale(scale: float) -> None:
    """Refuse a scale that makes no model.

    Raises:
        ValueError: If it is not a number between −10 and 10.
    """
    if not isinstance(scale, (int, float)) or not -10 <= scale <= 10:
        raise ValueError(f"expected a scale between -10 and 10, got {scale!r}")


def check_text_encoder(expected: str, fingerprint: str) -> None:
    """Refuse another text encoder: the edit would act on features it was not made of.

    Raises:
        WrongBase: If the fingerprints differ.
    """
    if expected and expected != fingerprint:
        raise WrongBase(
            "this erasure was made for another text encoder and would not erase here; "
            f"{_EITHER_WAY}"
        )


def weight_streams(
    architecture: Architecture, weights: Mapping[str, Tensor], widths: Mapping[Stream, int]
) -> dict[Stream, dict[str, Tensor]]:
    """The weights that read each stream; without any weight, every stream with none.

    Raises:
        WrongBase: If a weight is too narrow for the text encoder's features.
    """
    found: dict[Stream, dict[str, Tensor]] = {} if weights else {stream: {} for stream in widths}
    for name, weight in weights.items():
        site = architecture.site(name)
        stream = site.stream if site else TOKENS
        if weight.ndim != 2 or weight.shape[1] < widths[stream]:
            raise WrongBase(
                f"{name} is {tuple(weight.shape)}, but the text encoder gives {widths[stream]} "
                "features"
            )
        found.setdefault(stream, {})[name] = weight
    return found


def weight_gram(weights: Iterable[Tensor], width: int) -> Tensor:
    """`Σ Wᵀ W`, `(width, width)` float64: all that RECE and certificates need of the weights.

    Raises:
        ValueError: If the features are too wide for it.
    """
    check_dense(width)
    gram = torch.zeros(width, width, dtype=torch.float64)
    for weight in weights:
        w = weight[:, :width].double()  # the other columns read no text
        gram += (w.T @ w).cpu()
    return gram
