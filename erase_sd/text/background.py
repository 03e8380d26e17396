"""The background moment: what ordinary prompts look like to a text encoder.

An edit that knows nothing but the forget prompts harms everything that shares a direction with
them. So each encoder's own whole-word vocabulary, in neutral templates, is encoded once, summed
into one `d × d` matrix and cached. Words too near the forget prompts are taken out again by
subtraction.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from erase_sd.algebra.moments import SecondMoment
from erase_sd.models.architectures import Stream
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
FORMAT = "4"  # of the cached file; older ones are made again


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
            features (every position but BOS).
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
        gone = encoder.moments([self.prompts[i] for i in indices], RULE, length=LENGTH)
        return {
            stream: tuple(a - b for a, b in zip(layers, gone[stream], strict=True))
            for stream, layers in self.moments.items()
        }


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
    told = "\n".join([FORMAT, RULE, str(LENGTH), how, *prompts])
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
    for states in encoder.stream(
        prompts, length=LENGTH, progress="background moment (once per text encoder)"
    ):
        moments = gathered(moments, states, RULE)
        meant.append(states.meanings)
        means.append(states.means(RULE))
    return Background(moments, tuple(prompts), torch.cat(meant), torch.cat(means))


def _read(path: Path, encoder: TextEncoder, prompts: list[str]) -> Background:
    data = load_file(path)
    moments = {
        stream: tuple(
            SecondMoment.summed(data[f"{k}.gram"], data[f"{k}.total"], float(data[f"{k}.count"]))
            for k in (f"{stream}.{i}" for i in range(len(layers)))
        )
        for stream, layers in encoder.no_moments().items()
    }
    if any(m.width != encoder.widths[s] for s, layers in moments.items() for m in layers):
        raise ValueError("it is of another width")
    if {len(data["meanings"]), len(data["means"])} != {len(prompts)}:
        raise ValueError("it holds other prompts")
    if not all(bool(torch.isfinite(value).all()) for value in data.values()):
        raise ValueError("it holds NaN or infinite values")
    return Background(moments, tuple(prompts), data["meanings"], data["means"])


def _write(path: Path, made: Background) -> None:
    tensors = {"meanings": made.meanings.contiguous(), "means": made.means.contiguous()}
    for stream, layers in made.moments.items():
        for i, moment in enumerate(layers):
            key = f"{stream}.{i}"
            tensors |= {f"{key}.gram": moment.gram, f"{key}.total": moment.total}
            tensors[f"{key}.count"] = torch.tensor(moment.count, dtype=torch.float64)
    with atomic_path(path, force=True) as draft:
        write_tensors(draft, tensors)
