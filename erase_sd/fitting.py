"""From prompts to an erasure: gather moments, solve, measure."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase_sd.background import RULE, background, meanings
from erase_sd.certify import certify
from erase_sd.erasure import Erasure, Part, weight_gram
from erase_sd.methods import DEFAULT, METHODS, Method
from erase_sd.methods.problem import Problem
from erase_sd.moments import SecondMoment
from erase_sd.prompts import clean, neutral
from erase_sd.robust import harden
from erase_sd.text import TextEncoder

NEAR = 0.9  # cosine above which a background prompt counts as the concept itself


def in_contexts(prompts: Sequence[str], contexts: Sequence[str]) -> list[str]:
    """Each prompt of up to three words in every context; longer ones are sentences and stay alone."""
    return clean(c.format(p) if len(p.split()) <= 3 else p for p in prompts for c in contexts)


def build_problem(
    encoder: TextEncoder,
    forget: Sequence[str],
    *,
    retain: Sequence[str] = (),
    retain_source: str = "background",
    tokens: str = "all-but-bos",
    contexts: Sequence[str] = ("{}",),
    anchor: str | None = None,
    near: float = NEAR,
    gram: Tensor | None = None,
) -> Problem:
    """Encode prompts and sum up what a method may see.

    Args:
        encoder: The model's text encoder.
        forget: Prompts to forget.
        retain: Prompts to keep.
        retain_source: "none", "listed" (neutral templates and `retain`) or "background" (those and
            the encoder's vocabulary, less what is near the forget prompts).
        tokens: Token rule of the forget rows.
        contexts: Sentences that each short forget prompt is put in to make the forget rows.
        anchor: Target prompt of methods that have one; "" is the empty prompt.
        near: Cosine above which a background prompt is left out.
        gram: `Σ WᵀW` of the weights to edit.

    Raises:
        ValueError: If there is nothing to forget, or a retain prompt is a forget prompt.
    """
    forget, retain = clean(forget), clean(retain)
    if not forget:
        raise ValueError("the forget prompts are empty; write at least one word")
    both = sorted({p.lower() for p in forget} & {p.lower() for p in retain})
    if both:
        raise ValueError(f"asked both to forget and to retain {both[0]!r}; take it out of one list")
    kept = SecondMoment.zeros(encoder.width)
    listed = retain
    if retain_source != "none":
        # "a photo of a bird" does not protect when birds are to go.
        words = {w for p in forget for w in p.lower().split()}
        listed = clean([*retain, *(p for p in neutral() if p.lower().split()[-1] not in words)])
    if retain_source == "listed":
        kept = encoder.moment(listed, tokens, progress="retain prompts")
    elif retain_source == "background":
        ordinary = background(encoder)
        kept = ordinary.without(encoder, ordinary.near(meanings(encoder, forget), near))
        if retain:
            # Chosen prompts weigh as much as the whole background, or thousands would drown them.
            own = encoder.moment(retain, RULE, progress="retain prompts")
            scale = kept.count / own.count
            kept = kept + SecondMoment(own.gram * scale, own.total * scale, own.count * scale)
    null = encoder.encode([""])
    anchors = torch.zeros(0, encoder.width)
    if anchor is not None:
        # The empty anchor is BOS, as in the code of UCE and its kin; any other its last subject token.
        target = encoder.subjects([anchor])[0] if anchor.strip() else null.states[0, 0].double()
        anchors = target.expand(len(forget), -1)
    return Problem(
        forget=encoder.moment(in_contexts(forget, contexts), tokens, progress="forget prompts"),
        retain=kept,
        null=null.rows("all"),
        concepts=encoder.subjects(forget),
        anchors=anchors,
        kept=encoder.subjects(listed),
        weight_gram=gram if gram is not None else torch.zeros(0, 0),
    )


def _ordinary(encoder: TextEncoder, problem: Problem, forget: Sequence[str], spec: Method, near: float) -> SecondMoment:
    """What every method is certified against, whatever it was told to retain: the background."""
    if spec.retain == "background":
        return problem.retain
    everything = background(encoder)
    return everything.without(encoder, everything.near(meanings(encoder, list(forget)), near))


def fit(
    encoder: TextEncoder,
    forget: Sequence[str],
    *,
    retain: Sequence[str] = (),
    method: str = DEFAULT,
    toward: str | None = None,
    tokens: str | None = None,
    strength: float = 1.0,
    contexts: Sequence[str] | None = None,
    name: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    near: float = NEAR,
    robust: bool = False,
    **options: Any,
) -> Erasure:
    """Make the erasure of one concept.

    Args:
        encoder: The model's text encoder.
        forget: One or more prompts that mean the concept.
        retain: Prompts to keep besides the defaults of the method.
        method: Name in `erase_sd.methods.METHODS`.
        toward: Where methods with a target move the concept; default: the method's own.
        tokens: Token rule of the forget features; default: the method's own.
        strength: 1 is the method's own edit; 0 changes nothing.
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
    if not 0 <= strength <= 10:
        raise ValueError(f"expected a strength between 0 and 10, got {strength}")
    forget, retain = clean(forget), clean(retain)
    settings = {**spec.options, **options}
    rule = tokens or spec.tokens
    sentences = tuple(contexts or spec.contexts)
    edited = {n: w for n, w in (weights or {}).items() if n.split(".to_")[-1][:1] in spec.kinds}
    gram = weight_gram(edited) if edited else None
    if robust:
        kept = {p.lower() for p in retain}
        same = background(encoder).synonyms(meanings(encoder, forget), near)
        forget = clean([*forget, *(w for w in same if w.lower() not in kept)])
    problem = build_problem(
        encoder,
        forget,
        retain=retain,
        retain_source=spec.retain,
        tokens=rule,
        contexts=sentences,
        anchor=spec.anchor if toward is None else toward,
        near=near,
        gram=gram,
    )
    solve = functools.partial(spec.load(), **settings)
    history: list[float] = []
    if robust:
        edit, history = harden(problem, solve)
    else:
        edit = solve(problem)
    certificate = certify(edit.scaled(strength), problem, ordinary=_ordinary(encoder, problem, forget, spec, near))
    if robust:
        certificate["revivable_by_round"] = [round(v, 4) for v in history]
    part = Part(
        name=name or forget[0],
        edit=edit,
        forget=tuple(forget),
        retain=tuple(retain),
        method=method,
        tokens=rule,
        contexts=sentences,
        strength=strength,
        options=settings | ({"robust": True} if robust else {}),
        certificate=certificate,
    )
    erasure = Erasure((part,), kinds=spec.kinds, text_encoder=encoder.fingerprint)
    return erasure.bound_to(edited) if edited else erasure
