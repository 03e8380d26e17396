"""Closed-form erasure methods: pure functions from a `Problem` to a `LowRankEdit`.

Each lives in the file named for it and is registered by one line below; nothing is imported before
it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erase_sd.edit import LowRankEdit

__all__ = ["DEFAULT", "METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """One closed-form method.

    Attributes:
        where: `module:function`, imported on first use.
        summary: One line for people.
        source: Paper or code that it comes from.
        retain: What its retain moment holds: "none", "listed" (templates with neutral nouns and the
            user's retain prompts) or "background" (those and the encoder's whole vocabulary).
        tokens: Which token states make up its forget rows.
        contexts: Sentences, with one `{}`, that each short forget prompt is also put in.
        anchor: Default `--toward` prompt, for methods that move a concept somewhere; None if it has
            no target.
        kinds: Which projections it edits, "k", "v" or both.
        strength: Default strength. A projection removes what the forget prompts' own sentences show; a quarter more
            reverses it, which also reaches other sentences, where the detectors see only some of the concept.
        reads_weights: Whether it needs `Σ WᵀW` of the weights.
        options: Names and defaults of its own options.
        style: What is otherwise for styles, which spread over every word of a prompt: options, and the strength.
    """

    where: str
    summary: str
    source: str
    retain: str = "none"
    tokens: str = "all-but-bos"
    contexts: tuple[str, ...] = ("{}",)
    anchor: str | None = None
    kinds: str = "kv"
    strength: float = 1.0
    reads_weights: bool = False
    options: dict[str, float | int | str | bool] = field(default_factory=dict)
    style: dict[str, float] = field(default_factory=dict)

    def load(self) -> Callable[..., LowRankEdit]:
        """Import the function behind this method."""
        module, name = self.where.split(":")
        return getattr(importlib.import_module(module), name)


_UNLINK = "Unlearn in a Blink (OpenReview KnDkteVLTn)"
_HERE = "erase_sd.methods"
# A concept looks a little different in every sentence; several of them tell its directions from the sentence's.
_SENTENCES = (
    "{}",
    "a photo of a {}",
    "a picture of {}",
    "a drawing of a {}",
    "a red {}",
    "a {} on a table",
    "a {} in a street",
    "a small {} in the sky",
)

METHODS: dict[str, Method] = {
    "rayleigh": Method(
        f"{_HERE}.rayleigh:rayleigh",
        "generalized Rayleigh quotient in its consistent form; protects a background of ordinary words",
        f"{_UNLINK}, Eq. 14-15, corrected: see docs/methods.md",
        contexts=_SENTENCES,
        retain="background",
        strength=1.25,
        style={"strength": 1.5, "share": 0.03},
        options={"rank": 0, "share": 0.1, "epsilon": 1e-3, "variant": "hard", "protect_null": True},
    ),
    "unlink": Method(
        f"{_HERE}.unlink:unlink",
        "top directions of the forget prompts, projected out; no protection",
        f"{_UNLINK}, Algorithm 1",
        options={"rank": 1},
    ),
    "unlink-deflated": Method(
        f"{_HERE}.unlink:unlink_deflated",
        "Unlink on what is left of the forget prompts outside the protected span",
        "this project",
        retain="listed",
        options={"rank": 1, "energy": 0.01},
    ),
    "unlink-oblique": Method(
        f"{_HERE}.unlink:unlink_oblique",
        "Unlink's subspace, removed by the map that moves retained features least",
        "this project",
        contexts=_SENTENCES,
        retain="background",
        options={"rank": 1, "epsilon": 1e-3, "protect_null": True},
    ),
    "gf": Method(
        f"{_HERE}.gf:gf",
        "importance-weighted forget space less what the retain space explains",
        "Deep Unlearning (arXiv 2312.00761), Eq. 4-6",
        retain="listed",
        options={"alpha_forget": 3.0, "alpha_retain": 100.0},
    ),
    "cure": Method(
        f"{_HERE}.gf:cure",
        "spectral eraser P_f - P_f P_r with expanded energies",
        "CURE (arXiv 2505.12677)",
        retain="listed",
        options={"alpha": 2.0},
    ),
    "uce": Method(
        f"{_HERE}.uce:uce",
        "ridge regression of each concept's last subject token onto an anchor",
        "Unified Concept Editing (arXiv 2308.14761), Eq. 7",
        retain="listed",
        tokens="last-subject",
        anchor="",
        options={"erase_scale": 1.0, "preserve_scale": 1.0, "ridge": 0.5},
    ),
    "rece": Method(
        f"{_HERE}.rece:rece",
        "rounds of UCE against the embedding that best revives the concept",
        "RECE (arXiv 2407.12383), Eq. 9",
        retain="listed",
        tokens="last-subject",
        anchor="",
        reads_weights=True,
        options={"rounds": 3, "rho": 0.1, "erase_scale": 1.0, "preserve_scale": 1.0, "ridge": 0.5},
    ),
    "speed": Method(
        f"{_HERE}.speed:speed",
        "null-space constrained edit of the values; invariant empty prompt",
        "SPEED (arXiv 2503.07392)",
        retain="listed",
        tokens="last-subject",
        anchor="",
        kinds="v",
        options={"threshold": 0.1, "retain_scale": 1.0, "null_ridge": 0.0},
    ),
    "leace": Method(
        f"{_HERE}.leace:leace",
        "least-squares linear concept erasure of the label 'forget or retain'",
        "LEACE (arXiv 2306.03819), Theorem 4.2",
        retain="background",
        options={"tolerance": 1e-5},
    ),
}

DEFAULT = "rayleigh"
