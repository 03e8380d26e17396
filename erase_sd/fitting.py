"""From prompts to an erasure: gather moments, solve, measure."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from erase_sd.background import RULE, background, meanings
from erase_sd.certify import certify, certify_weights
from erase_sd.edit import LowRankEdit
from erase_sd.erasure import Erasure, Part, weight_gram, weight_streams
from erase_sd.methods import DEFAULT, METHODS
from erase_sd.methods.problem import Problem
from erase_sd.moments import SecondMoment
from erase_sd.prompts import clean, neutral
from erase_sd.robust import harden
from erase_sd.sites import POOLED, TOKENS
from erase_sd.text import PromptStates, TextEncoder

NEAR = 0.9  # cosine above which a background prompt counts as the concept itself


# How much a user's retain prompts weigh beside the background: enough that thousands of words do not drown
# them, too little to crowd out the concept's own directions when many concepts go.
OWN = 0.1
# "by someone", "in the style of something" say how a thing is drawn.
_MANNER = ("by ", "in the style of ")
_THINGS = ("{}", "a photo of a {}", "a house {}", "a tree {}", "a person {}", "a chair {}", "a flower {}")


def is_style(forget: Sequence[str]) -> bool:
    """Whether the prompts name a manner of drawing: one of them begins with "by" or "in the style of"."""
    return any(p.lower().startswith(_MANNER) for p in forget)


def in_contexts(prompts: Sequence[str], contexts: Sequence[str]) -> list[str]:
    """Each short prompt in every context; those of over three words are sentences and stay alone.

    A style stands behind things instead ("a house by someone"): what it does to them is what must go.
    """
    if len(contexts) > 1 and is_style(prompts):
        return clean(c.format(p) if len(p.split()) <= 8 else p for p in prompts for c in _THINGS)
    return clean(c.format(p) if len(p.split()) <= 3 else p for p in prompts for c in contexts)


@dataclass(frozen=True)
class Task:
    """What to forget and keep, checked; from it comes one `Problem` for every stream.

    Attributes:
        encoder: The model's text encoders.
        forget: Prompts to forget.
        retain: Prompts to keep.
        retain_source: "none", "listed" (neutral templates and `retain`) or "background" (those and
            the encoder's vocabulary, less what is near the forget prompts).
        tokens: Token rule of the forget rows.
        contexts: Sentences that each short forget prompt is put in to make the forget rows.
        anchor: Target prompt of methods that have one; "" is the empty prompt.
        near: Cosine above which a background prompt is left out.
    """

    encoder: TextEncoder
    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    retain_source: str = "background"
    tokens: str = "all-but-bos"
    contexts: tuple[str, ...] = ("{}",)
    anchor: str | None = None
    near: float = NEAR

    def __post_init__(self) -> None:
        object.__setattr__(self, "forget", tuple(clean(self.forget)))
        object.__setattr__(self, "retain", tuple(clean(self.retain)))
        if not self.forget:
            raise ValueError("the forget prompts are empty; write at least one word")
        both = sorted({p.lower() for p in self.forget} & {p.lower() for p in self.retain})
        if both:
            raise ValueError(f"asked both to forget and to retain {both[0]!r}; take it out of one list")

    @property
    def listed(self) -> list[str]:
        """Retain prompts by name: the user's, and neutral nouns unless one of them is to go."""
        if self.retain_source == "none":
            return list(self.retain)
        # "a photo of a bird" does not protect when birds are to go.
        words = {w for p in self.forget for w in p.lower().split()}
        return clean([*self.retain, *(p for p in neutral() if p.lower().split()[-1] not in words)])

    @cached_property
    def ordinary(self) -> dict[str, SecondMoment]:
        """Each stream's background, less what is near the forget prompts."""
        everything = background(self.encoder)
        return everything.without(self.encoder, everything.near(meanings(self.encoder, list(self.forget)), self.near))

    @cached_property
    def kept(self) -> dict[str, SecondMoment]:
        """Each stream's retain moment, as the method's source has it."""
        if self.retain_source == "listed":
            return self.encoder.moments(self.listed, self.tokens, progress="retain prompts")
        if self.retain_source == "none":
            return {stream: SecondMoment.zeros(width) for stream, width in self.encoder.widths.items()}
        kept = dict(self.ordinary)
        if self.retain:
            own = self.encoder.moments(list(self.retain), RULE, progress="retain prompts")
            kept = {stream: moment + own[stream].weighing(OWN * moment.count) for stream, moment in kept.items()}
        return kept

    @cached_property
    def gone(self) -> dict[str, SecondMoment]:
        """Each stream's forget moment."""
        prompts = in_contexts(self.forget, self.contexts)
        return self.encoder.moments(prompts, self.tokens, progress="forget prompts")

    @cached_property
    def _concepts(self) -> dict[str, Tensor]:
        return self.encoder.subjects(self.forget)

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        # A background has the neutral nouns in it; what the user names is looked at prompt by prompt.
        return self.encoder.subjects(self.retain if self.retain_source == "background" else self.listed)

    @cached_property
    def _null(self) -> PromptStates:
        return self.encoder.encode([""])

    def problem(self, stream: str = TOKENS, gram: Tensor | None = None) -> Problem:
        """All that a method may see of one stream.

        Args:
            stream: "tokens" or "pooled".
            gram: `Σ WᵀW` of the weights that read it.
        """
        null, concepts = self._null, self._concepts[stream]
        anchors = torch.zeros(0, self.encoder.widths[stream])
        if self.anchor is not None:
            # The empty anchor is BOS, as in the code of UCE and its kin; any other its last subject token.
            if self.anchor.strip() or stream == POOLED:
                target = self.encoder.subjects([self.anchor])[stream]
            else:
                target = null.states[0, :1].double()
            anchors = target.repeat(len(concepts) // len(target), 1)
        return Problem(
            forget=self.gone[stream],
            retain=self.kept[stream],
            null=null.rows("all", stream),
            concepts=concepts,
            anchors=anchors,
            kept=self._kept[stream],
            weight_gram=gram if gram is not None else torch.zeros(0, 0),
        )


def fit(
    encoder: TextEncoder,
    forget: Sequence[str],
    *,
    retain: Sequence[str] = (),
    method: str = DEFAULT,
    toward: str | None = None,
    tokens: str | None = None,
    strength: float | None = None,
    contexts: Sequence[str] | None = None,
    name: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    near: float = NEAR,
    robust: bool = False,
    **options: Any,
) -> Erasure:
    """Make the erasure of one concept.

    Args:
        encoder: The model's text encoders.
        forget: One or more prompts that mean the concept.
        retain: Prompts to keep besides the defaults of the method.
        method: Name in `erase_sd.methods.METHODS`.
        toward: Where methods with a target move the concept; default: the method's own.
        tokens: Token rule of the forget features; default: the method's own.
        strength: 1 is the method's own edit; 0 changes nothing; default: the method's own.
        contexts: Sentences that short forget prompts are put in; default: the method's own.
        name: Name of the concept in the artifact; default: the first forget prompt.
        weights: Base tensors the edit is for, by name; recorded as hashes.
        near: Cosine above which a background prompt is left out of the retain moment.
        robust: Also erase the vocabulary's synonyms of the concept, and the embeddings that would revive
            it (see `erase_sd.robust.harden`); needs `weights`.
        **options: The method's own options.

    Returns:
        An `Erasure` with one part and its certificate.

    Raises:
        ValueError: On any unusable input; the message says what to change.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    spec = METHODS[method]
    unknown = sorted(set(options) - set(spec.options))
    if unknown:
        raise ValueError(f"{method} has no option {unknown[0]!r}; it has {', '.join(spec.options)}")
    if toward is not None and spec.anchor is None:
        raise ValueError(f"{method} has no target to move toward; uce, rece and speed have")
    style = dict(spec.style) if is_style(clean(forget)) else {}
    if strength is None:
        # A map past the projection can be inverted, so robust erasures do not go there.
        strength = 1.0 if robust else style.get("strength", spec.strength)
    style.pop("strength", None)
    if not 0 <= strength <= 10:
        raise ValueError(f"expected a strength between 0 and 10, got {strength}")
    settings = {**spec.options, **style, **options}
    if robust and "rank" not in spec.options:
        raise ValueError("--robust needs a method that projects: rayleigh, unlink, unlink-deflated or unlink-oblique")
    task = Task(
        encoder,
        tuple(forget),
        tuple(retain),
        retain_source=spec.retain,
        tokens=tokens or spec.tokens,
        contexts=tuple(contexts or spec.contexts),
        anchor=spec.anchor if toward is None else toward,
        near=near,
    )
    if robust:
        kept = {p.lower() for p in task.retain}
        same = background(encoder).synonyms(meanings(encoder, list(task.forget)), near)
        task = replace(task, forget=(*task.forget, *(w for w in same if w.lower() not in kept)))
    architecture = encoder.architecture
    edited = {n: weights[n] for n in architecture.sites(weights, kinds=spec.kinds)} if weights else {}
    edits: dict[str, LowRankEdit] = {}
    certificates: dict[str, dict[str, Any]] = {}
    streams = weight_streams(architecture, edited, encoder.widths)
    for stream, own_weights in streams.items():
        gram = functools.cache(functools.partial(weight_gram, own_weights, encoder.widths[stream]))
        reads = own_weights and (robust or spec.reads_weights)
        problem = task.problem(stream, gram() if reads else None)
        history: list[float] = []
        own = dict(settings)
        if stream == POOLED and own.get("rank"):  # one vector a prompt: it may span fewer directions
            own["rank"] = min(own["rank"], int(problem.forget.count))
        solve = functools.partial(spec.load(), **own)
        if robust:
            edits[stream], history = harden(problem, solve)
        else:
            edits[stream] = solve(problem)
        final = edits[stream].scaled(strength)
        about = certify(final, problem, ordinary=task.ordinary[stream])
        if own_weights:
            about |= certify_weights(final, problem, gram)
        certificates[stream] = about | ({"revivable_by_round": [round(v, 4) for v in history]} if robust else {})
    part = Part(
        name=name or task.forget[0],
        edits=edits,
        forget=task.forget,
        retain=task.retain,
        method=method,
        tokens=task.tokens,
        contexts=task.contexts,
        strength=strength,
        options=settings | ({"robust": True} if robust else {}),
        certificate=certificates.pop(TOKENS, {}) | certificates,
    )
    erasure = Erasure((part,), architecture.name, kinds=spec.kinds, text_encoder=encoder.fingerprint)
    return erasure.bound_to(edited) if edited else erasure
