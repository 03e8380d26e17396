"""Closed-form erasure methods: pure functions from a `Problem` to a `LowRankEdit`.

Each lives in the file named for it (`unlink-oblique` in `unlink_oblique.py`), which holds its
`Options` and its `solve(problem, options)`. One line below registers it; nothing is imported before
it is asked for.

>>> from erase_sd.algebra.methods import DEFAULT, METHODS, Method, get_method
>>> DEFAULT in METHODS, isinstance(get_method("uce"), Method), get_method("uce").retain
(True, True, 'listed')
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from erase_sd.algebra import options as opt

if TYPE_CHECKING:
    from erase_sd.algebra.edit import LowRankEdit
    from erase_sd.algebra.problem import Problem

__all__ = ["DEFAULT", "METHODS", "Method", "get_method"]

# A concept looks a little different in every sentence; several of them tell its directions from the
# sentence's.
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
_UNLINK = "Unlearn in a Blink (OpenReview KnDkteVLTn)"


@dataclass(frozen=True)
class Method:
    """One closed-form method.

    Attributes:
        name: Its registry name.
        summary: One line for people.
        source: Paper or code that it comes from.
        retain: What its retain moment holds: "none", "listed" (templates with neutral nouns and the
            user's retain prompts) or "background" (those and the encoder's whole vocabulary).
        tokens: Which token states make up its forget rows.
        contexts: Sentences, with one `{}`, that each short forget prompt is also put in.
        anchor: Default `--toward` prompt, for methods that move a concept somewhere; None if it has
            no target.
        kinds: Which projections its right side edits.
        strength: Default strength.
        weights: What it needs of the weights: nothing or `Σ WᵀW`.
        style: Options that are otherwise for styles, which spread over every word of a prompt.
        style_strength: Their strength, where it is another.
    """

    name: str
    summary: str
    source: str
    retain: Literal["none", "listed", "background"] = "none"
    tokens: str = "all-but-bos"
    contexts: tuple[str, ...] = ("{}",)
    anchor: str | None = None
    kinds: Literal["k", "v", "kv"] = "kv"
    strength: float = 1.0
    weights: Literal["none", "gram"] = "none"
    style: Mapping[str, Any] = field(default_factory=dict)
    style_strength: float | None = None

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"{__name__}.{self.name.replace('-', '_')}")

    @property
    def options(self) -> type[Any]:
        """Its options dataclass."""
        return self._module.Options

    def make_options(self, given: Mapping[str, Any], *, style: bool = False) -> Any:
        """Its options from names and values.

        Raises:
            ValueError: On an unknown name, or a value of another type or out of its range.
        """
        return opt.make(
            self.options,
            {**(self.style if style else {}), **given},
            owner=self.name,
        )

    def solve(self, problem: Problem, options: Any) -> LowRankEdit:
        """The edit of the features."""
        return self._module.solve(problem, options)


_ALL = (
    Method(
        "rayleigh",
        "generalized Rayleigh quotient in its consistent form; protects a background of ordinary "
        "words",
        f"{_UNLINK}, Eq. 14-15, corrected: see docs/methods.md",
        retain="background",
        tokens="balanced",
        contexts=_SENTENCES,
        strength=1.25,
        style={"share": 0.03},
        style_strength=1.5,
    ),
    Method(
        "soft",
        "every direction with a gain of its own, by least squares; nothing is overshot",
        "this project: docs/methods.md",
        retain="background",
        tokens="balanced",
        contexts=_SENTENCES,
    ),
    Method(
        "unlink",
        "top directions of the forget prompts, projected out; no protection",
        f"{_UNLINK}, Algorithm 1",
    ),
    Method(
        "unlink-deflated",
        "Unlink on what is left of the forget prompts outside the protected span",
        "this project",
        retain="listed",
    ),
    Method(
        "unlink-oblique",
        "Unlink's subspace, removed by the map that moves retained features least",
        "this project",
        retain="background",
        contexts=_SENTENCES,
    ),
    Method(
        "gf",
        "importance-weighted forget space less what the retain space explains",
        "Deep Unlearning (arXiv 2312.00761), Eq. 4-6",
        retain="listed",
    ),
    Method(
        "cure",
        "spectral eraser P_f - P_f P_r with expanded energies",
        "CURE (arXiv 2505.12677)",
        retain="listed",
    ),
    Method(
        "uce",
        "ridge regression of each concept's last subject token onto an anchor",
        "Unified Concept Editing (arXiv 2308.14761), Eq. 7",
        retain="listed",
        tokens="last-subject",
        anchor="",
    ),
    Method(
        "rece",
        "rounds of UCE against the embedding that best revives the concept",
        "RECE (arXiv 2407.12383), Eq. 9",
        retain="listed",
        tokens="last-subject",
        anchor="",
        weights="gram",
    ),
    Method(
        "speed",
        "null-space constrained edit of the values; invariant empty prompt",
        "SPEED (arXiv 2503.07392)",
        retain="listed",
        tokens="last-subject",
        anchor="",
        kinds="v",
    ),
    Method(
        "trce",
        "stage 1 of TRCE: the closing EOS of every sentence about the concept becomes that of a "
        "safe one",
        "TRCE (arXiv 2503.07389), stage 1",
        retain="background",
        tokens="eos",
        contexts=_SENTENCES,
        anchor="",
    ),
    Method(
        "dp",
        "double projection: onto a safe subspace, inside the null space of what is kept",
        "Closed-Form Concept Erasure via Double Projections (arXiv 2604.10032)",
        retain="listed",
        tokens="last-subject",
        anchor="",
    ),
    Method(
        "leace",
        "least-squares linear concept erasure of the label 'forget or retain'",
        "LEACE (arXiv 2306.03819), Theorem 4.2",
        retain="background",
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}

DEFAULT = "rayleigh"


def get_method(name: str) -> Method:
    """The method of a registry name.

    Raises:
        ValueError: If there is none.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
