"""From prompts to an erasure: choose settings, gather moments, solve, measure."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from erase_sd.algebra import options as opt
from erase_sd.algebra.certificate import certify, certify_values
from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.left import LeftOptions, left_side
from erase_sd.algebra.methods import DEFAULT, Method, get_method
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.two_sided import TwoSidedEdit
from erase_sd.artifact.base import weight_gram, weight_streams
from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.erasure import Erasure
from erase_sd.fit.task import NEAR, Task, is_style
from erase_sd.models.architectures import POOLED, TOKENS, Architecture, Stream
from erase_sd.prompts import clean
from erase_sd.text.background import background, meanings
from erase_sd.text.encoder import TextEncoder

SMALL = 1024  # width up to which a solve takes one thread
CONTRADICTED = 0.01  # drift above which a prompt that was named to be kept is said not to be


@dataclass(frozen=True)
class Settings:
    """How a concept is erased; None takes the method's own.

    Attributes:
        method: Name in `erase_sd.algebra.methods.METHODS`.
        toward: Where methods with a target move the concept.
        tokens: Token rule of the forget features.
        strength: 1 is the method's own edit; 0 changes nothing.
        contexts: Sentences that short forget prompts are put in.
        near: Cosine above which a background prompt is left out of the retain moment.
        robust: Also erase the vocabulary's synonyms of the concept, and close the left side, so
            that no input can make the values write what sets it apart.
        left: How far the left side goes, if `robust`.
        options: The method's own options, by name.
    """

    method: str = DEFAULT
    toward: str | None = None
    tokens: str | None = None
    strength: float | None = None
    contexts: tuple[str, ...] | None = None
    near: float = NEAR
    robust: bool = False
    left: LeftOptions = LeftOptions()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """Settings by name; every name that is none of them is an option of the method.

        Example:
            >>> Settings.of(method="uce", ridge=0.1).options
            {'ridge': 0.1}
        """
        own = {f.name for f in fields(cls)} - {"options"}
        options = {k: v for k, v in given.items() if k not in own}
        return cls(**{k: v for k, v in given.items() if k in own}, options=options)

    @property
    def spec(self) -> Method:
        """The method's registry entry."""
        return get_method(self.method)


@dataclass(frozen=True)
class Resolved:
    """Settings with everything chosen.

    Attributes:
        spec: The method.
        strength: How far its edit goes.
        options: Its options.
        left: Those of the left side; None leaves it open.
    """

    spec: Method
    strength: float
    options: Any
    left: LeftOptions | None = None


def resolve(settings: Settings, forget: Sequence[str]) -> Resolved:
    """Choose what the settings leave open.

    Raises:
        ValueError: If an option is unknown or out of its range, or does not fit the method.
    """
    spec = settings.spec
    style = is_style(clean(forget))
    clean([settings.toward or ""])
    options = spec.make_options(settings.options, style=style)
    if settings.toward is not None and spec.anchor is None:
        raise ValueError(f"{spec.name} has no target to move toward; uce, rece and speed have")
    usual = (spec.style_strength if style else None, spec.strength)
    strength = next(s for s in (settings.strength, *usual) if s is not None)
    if not isinstance(strength, (int, float)) or not 0 <= strength <= 10:
        raise ValueError(f"expected a strength between 0 and 10, got {strength!r}")
    for one in map(str, settings.contexts or ()):
        if "{}" not in one or set("{}") & set(one.replace("{}", "", 1)):
            raise ValueError(f"expected contexts with one place {{}}, got {one!r}")
    return Resolved(spec, float(strength), options, settings.left if settings.robust else None)


def fit(
    encoder: TextEncoder,
    forget: Sequence[str],
    *,
    retain: Sequence[str] = (),
    name: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    settings: Settings | None = None,
) -> Erasure:
    """Make the erasure of one concept.

    Args:
        encoder: The model's text encoders.
        forget: One or more prompts that mean the concept.
        retain: Prompts to keep besides the defaults of the method.
        name: Name of the concept in the artifact; default: the first forget prompt.
        weights: Base tensors the edit is for, by name; recorded as hashes.
        settings: How; default: the default method as it is.

    Returns:
        An `Erasure` of one concept, with its certificate.

    Raises:
        ValueError: On any unusable input; the message says what to change.
    """
    settings = settings or Settings()
    chosen = resolve(settings, forget)
    task = make_task(encoder, forget, retain, settings)
    edited = (
        {
            s.name: weights[s.name]
            for s in encoder.architecture.sites(weights, kinds=chosen.spec.kinds)
        }
        if weights
        else {}
    )
    with few_threads(encoder.width):
        concept = solve(task, chosen, edited)
    erasure = Erasure(
        (replace(concept, name=name or task.forget[0]),),
        encoder.architecture.name,
        kinds=chosen.spec.kinds,
        text_encoder=encoder.fingerprint,
    )
    return erasure.bound_to(edited) if edited else erasure


@contextmanager
def few_threads(width: int) -> Iterator[None]:
    """One thread for matrices that are done in milliseconds, for a while.

    Two threads on busy cores wait for each other longer than they compute: small solves took ten
    times as long.

    Args:
        width: Features of a token; above 1,024 torch's own number stays.
    """
    before = torch.get_num_threads()
    if width <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_task(
    encoder: TextEncoder, forget: Sequence[str], retain: Sequence[str], settings: Settings
) -> Task:
    """The prompts of a concept, checked; with `robust`, also the vocabulary's synonyms.

    Raises:
        ValueError: If there is nothing to forget, or a prompt is both to forget and to retain.
    """
    spec = settings.spec
    task = Task(
        encoder,
        tuple(forget),
        tuple(retain),
        retain_source=spec.retain,
        tokens=settings.tokens or spec.tokens,
        contexts=tuple(settings.contexts or spec.contexts),
        anchor=spec.anchor if settings.toward is None else settings.toward,
        near=settings.near,
    )
    if not settings.robust:
        return task
    kept = {p.lower() for p in task.retain}
    same = background(encoder).synonyms(meanings(encoder, list(task.forget)), settings.near)
    return replace(task, forget=(*task.forget, *(w for w in same if w.lower() not in kept)))


def solve(task: Task, chosen: Resolved, weights: Mapping[str, Tensor]) -> ErasedConcept:
    """Solve every text stream, then every left side, and certify.

    Args:
        task: What to forget and to keep.
        chosen: How.
        weights: Base tensors to edit, by name; may be empty for methods that read none.

    Raises:
        ValueError: If there is nothing to forget, nothing left to erase, or weights are missing.
    """
    right: dict[Stream, LowRankEdit] = {}
    left: dict[str, LowRankEdit] = {}
    certificates: dict[str, dict[str, Any]] = {}
    encoder, spec = task.encoder, chosen.spec
    for stream, own in weight_streams(encoder.architecture, weights, encoder.widths).items():
        gram = functools.cache(functools.partial(weight_gram, own.values(), encoder.widths[stream]))
        problem = task.problem(stream, gram() if own and spec.weights == "gram" else None)
        right[stream] = spec.solve(problem, _fitting(chosen.options, stream, problem)).rounded()
        layers = list(zip(task.forget_moments[stream], task.ordinary[stream], strict=True))
        about = certify(right[stream], problem, layers=layers)
        if stream == TOKENS:
            left, closed, drifts = _left(task, problem, own, right[stream], chosen.left)
            about |= closed
            about["retain_contradicts"] = {
                p: round(d, 4) for p, d in drifts.items() if d > CONTRADICTED
            }
        certificates[stream] = about
    return ErasedConcept(
        name=task.forget[0],
        right=right,
        left=left,
        forget=task.forget,
        retain=task.retain,
        method=spec.name,
        tokens=task.tokens,
        contexts=task.contexts,
        layers=encoder.layers,
        strength=chosen.strength,
        options=_used(chosen, right[TOKENS])
        | ({"toward": task.anchor} if spec.anchor is not None and task.anchor else {}),
        certificate=certificates.pop(TOKENS, {}) | certificates,
    )


def _left(
    task: Task,
    problem: Problem,
    weights: Mapping[str, Tensor],
    right: LowRankEdit,
    options: LeftOptions | None,
) -> tuple[dict[str, LowRankEdit], dict[str, float], dict[str, float]]:
    """The left side of each value weight, its certificate, and how far named prompts move."""
    if options is None:
        return {}, {}, task.drifts(right, {}, {})
    values = _values(task.encoder.architecture, weights)
    apart = task.apartness(list(values.values()))
    told = replace(problem, contrast=apart.contrast, drawn=apart.drawn)
    left = {n: left_side(w, told, options).rounded() for n, w in values.items()}
    edits = {n: TwoSidedEdit(right, side) for n, side in left.items()}
    about = certify_values(values, edits, apart.held_out)
    return left, about, task.drifts(right, edits, values)


def _values(architecture: Architecture, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of some weights whose outputs are what attention passes on.

    Raises:
        ValueError: If there are none.
    """
    found = [s.name for s in architecture.sites(weights) if s.writes_values] if weights else []
    if not found:
        raise ValueError("a left side (--robust) needs the weights that the edit is for")
    return {name: weights[name] for name in found}


def _fitting(options: Any, stream: Stream, problem: Problem) -> Any:
    """The options for one stream: one vector a prompt may span fewer directions than asked."""
    if stream == POOLED and getattr(options, "rank", None):
        return replace(options, rank=min(options.rank, int(problem.forget.count)))
    return options


def _used(chosen: Resolved, edit: LowRankEdit) -> dict[str, Any]:
    """The options as they were used: what was left to be chosen, as it was chosen."""
    used = opt.described(chosen.options)
    if "rank" in used and used["rank"] is None:
        used["rank"] = edit.rank
    return used | ({"left": opt.described(chosen.left)} if chosen.left else {})
