"""The background moment: what ordinary prompts look like to a text encoder.

An edit that knows nothing but the forget prompts harms everything that shares a direction with them.
So each encoder's own whole-word vocabulary, in neutral templates, is encoded once, summed into one
`d × d` matrix and cached. Words too near the forget prompts are taken out again by subtraction.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from erase_sd.checkpoints import atomic_path
from erase_sd.moments import SecondMoment
from erase_sd.text import TextEncoder

logger = logging.getLogger("erase_sd")

WORDS = 2000
TEMPLATES = ("{}", "a photo of a {}", "a picture of {}", "a drawing of a {}")
RULE = "all-but-bos"


def cache_folder() -> Path:
    """`$ERASE_SD_CACHE`, else `erase_sd` in the user's cache directory."""
    if folder := os.environ.get("ERASE_SD_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erase_sd"


@dataclass(frozen=True, eq=False)
class Background:
    """Moment of many ordinary prompts, and where each of them points.

    Attributes:
        moment: Sum over all prompts' states (every position but BOS).
        prompts: The prompts.
        meanings: `(n, d)` float32, each prompt's EOS state.
    """

    moment: SecondMoment
    prompts: tuple[str, ...]
    meanings: Tensor

    def near(self, meanings: Tensor, threshold: float) -> list[int]:
        """Indices of prompts whose centred EOS state has a cosine above `threshold` with any given one.

        Args:
            meanings: `(c, d)` EOS states of the forget prompts.
            threshold: Cosine, −1 to 1.
        """
        centre = self.meanings.mean(0)
        ours = torch.nn.functional.normalize(self.meanings - centre, dim=1)
        theirs = torch.nn.functional.normalize(meanings.float() - centre, dim=1)
        return torch.nonzero((ours @ theirs.T).amax(1) > threshold).flatten().tolist()

    def synonyms(self, meanings: Tensor, threshold: float) -> list[str]:
        """Bare words of the vocabulary that lie as near the given prompts."""
        return [self.prompts[i] for i in self.near(meanings, threshold) if " " not in self.prompts[i]]

    def without(self, encoder: TextEncoder, indices: list[int]) -> SecondMoment:
        """The moment less some prompts."""
        if not indices:
            return self.moment
        return self.moment - encoder.moment([self.prompts[i] for i in indices], RULE)


def vocabulary(encoder: TextEncoder, limit: int = WORDS) -> list[str]:
    """The encoder's most frequent whole words, three letters and more (BPE ids go by frequency)."""
    vocab = sorted(encoder.tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = (token.removesuffix("</w>") for token, _ in vocab if token.endswith("</w>"))
    return [w for w in words if len(w) >= 3 and w.isascii() and w.isalpha()][:limit]


def meanings(encoder: TextEncoder, prompts: list[str]) -> Tensor:
    """`(n, d)` EOS states: what a causal encoder makes of the whole prompt."""
    rows = []
    for states in encoder.stream(prompts):
        rows.append(states.states[torch.arange(len(states.prompts)), states.lengths + 1])
    return torch.cat(rows)


def background(encoder: TextEncoder) -> Background:
    """The encoder's background, from the cache if it is there; made in seconds to minutes otherwise."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    words = vocabulary(encoder)
    prompts = [TEMPLATES[(i + j) % len(TEMPLATES)].format(w) for j in range(2) for i, w in enumerate(words)]
    content = hashlib.sha256("\n".join([RULE, *prompts]).encode()).hexdigest()
    path = cache_folder() / f"background-{encoder.fingerprint[:16]}-{content[:8]}.safetensors"
    if path.exists():
        try:
            data = load_file(path)
            moment = SecondMoment(data["gram"], data["total"], float(data["count"]))
            if torch.isfinite(moment.gram).all() and data["meanings"].shape == (len(prompts), encoder.width):
                return Background(moment, tuple(prompts), data["meanings"])
            reason = "it holds other data"
        except (SafetensorError, OSError, KeyError) as error:
            reason = str(error)
        logger.warning("the cached background %s is unusable (%s); making it again", path, reason)
    moment, rows = SecondMoment.zeros(encoder.width), []
    for states in encoder.stream(prompts, progress="background moment (once per text encoder)"):
        moment = moment + SecondMoment.of(states.rows(RULE))
        rows.append(states.states[torch.arange(len(states.prompts)), states.lengths + 1])
    result = Background(moment, tuple(prompts), torch.cat(rows))
    tensors = {
        "gram": moment.gram,
        "total": moment.total,
        "count": torch.tensor(moment.count, dtype=torch.float64),
        "meanings": result.meanings.contiguous(),
    }
    try:
        with atomic_path(path, force=True) as draft:
            save_file(tensors, draft, metadata={"prompts": json.dumps(len(prompts))})
    except OSError as error:
        logger.warning("cannot cache the background moment (%s); set ERASE_SD_CACHE to a writable folder", error)
    return result
