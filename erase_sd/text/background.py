"""The background moment: what ordinary prompts look like to a text encoder.

An edit that knows nothing but the forget prompts harms everything that shares a direction with
them. So each encoder's own whole-word vocabulary, in neutral templates, is encoded once, summed
into one `d × d` matrix and cached. Words too near the forget prompts are taken out again by
subtraction. Where features are so wide that this matrix would fill the memory, one state of each
prompt, drawn by lot, is kept in its place and stands for the others.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from erase_sd.algebra.moments import SecondMoment
from erase_sd.models.architectures import TOKENS, Stream
from erase_sd.models.files import atomic_path
from erase_sd.models.tensor_files import write_tensors
from erase_sd.text.encoder import TextEncoder
from erase_sd.text.gathering import gathered

logger = logging.getLogger("erase_sd")

WORDS = 2000
TEMPLATES = ("{}", "a photo of a {}", "a picture of {}", "a drawing of a {}")
RULE = "all-but-bos"
# Positions that are encoded: a causal encoder's first states do not depend on later ones, and
# padding resembles padding, so a third of the line tells what the whole would.
LENGTH = 24
WIDE = 4096  # features above which one state stands for each prompt, and no d × d sum is made
FORMAT = "5"  # of the cached file; older ones are made again


def cache_folder() -> Path:
    """`$ERASE_SD_CACHE`, else `erase_sd` in the user's cache directory."""
    if folder := os.environ.get("ERASE_SD_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erase_sd"


@dataclass(frozen=True, eq=False)
class Background:
    """Moments of many ordinary prompts, and where each of them points.

    Attributes:
        moments: For each stream and each layer that a host may feed, the sum over all prompts'
            features (every position but BOS), or one row for each prompt.
        prompts: The prompts.
        meanings: `(n, d)` float32, each prompt's pooled vector or EOS state.
        means: `(n, d)` float32, the mean of each prompt's token states.
    """

    moments: dict[Stream, tuple[SecondMoment, ...]]
    prompts: tuple[str, ...]
    meanings: Tensor
    means: Tensor

    def near(self, meanings: Tensor, threshold: float) -> list[int]:
        """Indices of prompts that mean nearly the same as any given one.

        Args:
            meanings: `(c, d)` meanings of the forget prompts.
            threshold: Cosine of centred meanings above which they do, −1 to 1.
        """
        centre = self.meanings.mean(0)
        ours = torch.nn.functional.normalize(self.meanings - centre, dim=1)
        theirs = torch.nn.functional.normalize(meanings.float() - centre, dim=1)
        return torch.nonzero((ours @ theirs.T).amax(1) > threshold).flatten().tolist()

    def synonyms(self, meanings: Tensor, threshold: float) -> list[str]:
        """Bare words of the vocabulary that lie as near the given prompts."""
        return [
            self.prompts[i] for i in self.near(meanings, threshold) if " " not in self.prompts[i]
        ]

    def without(
        self, encoder: TextEncoder, indices: list[int]
    ) -> dict[Stream, tuple[SecondMoment, ...]]:
        """The moments less some prompts."""
        if not indices:
            return self.moments
        drawn = [TOKENS] if is_wide(encoder) else []
        summed = [stream for stream in self.moments if stream not in drawn]
        told = [self.prompts[i] for i in indices] if summed else []
        gone = encoder.moments(told, RULE, length=LENGTH)
        left = {s: tuple(m.leaving_out(indices) for m in self.moments[s]) for s in drawn}
        for s in summed:
            left[s] = tuple(a - b for a, b in zip(self.moments[s], gone[s], strict=True))
        return left


def vocabulary(encoder: TextEncoder, limit: int = WORDS) -> list[str]:
    """The encoder's most frequent whole words, three letters and more (ids go by frequency)."""
    vocab = sorted(encoder.tokenizer.get_vocab().items(), key=lambda item: item[1])
    # CLIP marks the end of a word, T5 and language models its beginning.
    words = (
        t.removesuffix("</w>").lstrip("▁Ġ")
        for t, _ in vocab
        if t.endswith("</w>") or t.startswith(("▁", "Ġ"))
    )
    return list(dict.fromkeys(w for w in words if len(w) >= 3 and w.isascii() and w.isalpha()))[
        :limit
    ]


def is_wide(encoder: TextEncoder) -> bool:
    """Whether its token states are too wide for a sum of `d × d`."""
    return encoder.width > WIDE


def positions(encoder: TextEncoder) -> int | None:
    """How many positions of a line forget prompts are encoded to; None for all.

    Of wide features the padding, which resembles itself, is told by its first positions.
    """
    return LENGTH if is_wide(encoder) else None


def meanings(encoder: TextEncoder, prompts: list[str]) -> Tensor:
    """`(n, d)`: what the encoder makes of each whole prompt."""
    once, index = encoder.distinct(prompts)
    return torch.cat([states.meanings for states in encoder.stream(once, length=1)])[index]


def background(encoder: TextEncoder) -> Background:
    """The encoder's background, from the cache if it is there.

    Made in seconds to minutes otherwise.

    Raises:
        ValueError: If the tokenizer's vocabulary has no whole words.
    """
    words = vocabulary(encoder)
    if not words:
        raise ValueError(
            "this tokenizer's vocabulary has no whole words to make a background of; use another "
            "--method"
        )
    prompts = [
        TEMPLATES[(i + j) % len(TEMPLATES)].format(w) for j in range(2) for i, w in enumerate(words)
    ]
    # One encoder is read in one way by this architecture and in another by that.
    how = repr([tower.spec for tower in encoder.towers])
    kind = "drawn" if is_wide(encoder) else "summed"
    told = "\n".join([FORMAT, RULE, str(LENGTH), kind, how, *prompts])
    content = hashlib.sha256(told.encode()).hexdigest()
    path = cache_folder() / f"background-{encoder.fingerprint[:16]}-{content[:8]}.safetensors"
    if path.exists():
        try:
            return _read(path, encoder, prompts)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning(
                "the cached background %s is unusable (%s); making it again", path, error
            )
    made = _gather(encoder, prompts)
    try:
        _write(path, made)
    except OSError as error:
        logger.warning(
            "cannot cache the background moment (%s); set ERASE_SD_CACHE to a writable folder",
            error,
        )
    return made


def _gather(encoder: TextEncoder, prompts: list[str]) -> Background:
    moments = encoder.no_moments()
    meant, means = [], []
    lots = torch.rand(len(prompts), generator=torch.Generator().manual_seed(0))
    wide = is_wide(encoder)
    for states in encoder.stream(
        prompts, length=LENGTH, progress="background moment (once per text encoder)"
    ):
        drawn, lots = lots[: len(states.prompts)], lots[len(states.prompts) :]
        moments = gathered(moments, states, RULE, lots=drawn if wide else None)
        meant.append(states.meanings)
        means.append(states.means(RULE))
    return Background(moments, tuple(prompts), torch.cat(meant), torch.cat(means))


def _read(path: Path, encoder: TextEncoder, prompts: list[str]) -> Background:
    data = load_file(path)
    moments = {
        stream: tuple(_moment(data, f"{stream}.{i}") for i in range(len(layers)))
        for stream, layers in encoder.no_moments().items()
    }
    if any(m.width != encoder.widths[s] for s, layers in moments.items() for m in layers):
        raise ValueError("it is of another width")
    if {len(data["meanings"]), len(data["means"])} != {len(prompts)}:
        raise ValueError("it holds other prompts")
    if not all(bool(torch.isfinite(value).all()) for value in data.values()):
        raise ValueError("it holds NaN or infinite values")
    return Background(moments, tuple(prompts), data["meanings"], data["means"])


def _moment(data: Mapping[str, Tensor], key: str) -> SecondMoment:
    held, weights = data[f"{key}.held"].double(), data.get(f"{key}.weights")
    return SecondMoment(held, weights, data[f"{key}.total"], float(data[f"{key}.count"]))


def _write(path: Path, made: Background) -> None:
    tensors = {"meanings": made.meanings.contiguous(), "means": made.means.contiguous()}
    for stream, layers in made.moments.items():
        for i, moment in enumerate(layers):
            key = f"{stream}.{i}"
            tensors |= {f"{key}.held": moment.held, f"{key}.total": moment.total}
            if moment.weights is not None:  # rows are states, which float32 holds
                tensors |= {f"{key}.held": moment.held.float(), f"{key}.weights": moment.weights}
            tensors[f"{key}.count"] = torch.tensor(moment.count, dtype=torch.float64)
    with atomic_path(path, force=True) as draft:
        write_tensors(draft, tensors)
