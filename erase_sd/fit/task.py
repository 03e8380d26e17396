"""What to forget and what to keep, as prompts, and the problem that methods solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.moments import SecondMoment, together
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.two_sided import TwoSidedEdit
from erase_sd.models.architectures import POOLED, TOKENS, Stream
from erase_sd.prompts import clean, neutral
from erase_sd.text.background import LENGTH, RULE, TEMPLATES, background, meanings, positions
from erase_sd.text.encoder import TextEncoder
from erase_sd.text.tokens import SINGLE, PromptStates

NEAR = 0.9  # cosine above which a background prompt counts as the concept itself

# How much a user's retain prompts weigh beside the background: enough that thousands of words do
# not drown them, too little to crowd out the concept's own directions when many concepts go.
OWN = 0.1
DRAWN = 0.2  # share of the background that a concept is set apart from
COMPARED = 32  # words of it that are put in sentences which no edit is made from
HELD_OUT = ("a {} on a table", "a small {} in the sky")

# "by someone", "in the style of something" say how a thing is drawn.
_MANNER = ("by ", "in the style of ")

_THINGS = (
    "{}", "a photo of a {}", "a house {}", "a tree {}", "a person {}",
    "a chair {}", "a flower {}",
)  # fmt: skip


def is_style(forget: Sequence[str]) -> bool:
    """Whether the prompts name a manner of drawing.

    One of them begins with "by" or "in the style of".
    """
    return any(p.lower().startswith(_MANNER) for p in forget)


def placed(prompts: Sequence[str], contexts: Sequence[str]) -> list[tuple[str, str]]:
    """Each prompt with each sentence that it is put in; those of over three words stay alone.

    A style stands behind things instead ("a house by someone"): what it does to them is what must
    go.
    """
    short = 3
    if len(contexts) > 1 and is_style(prompts):
        contexts, short = _THINGS, 8
    return [(p, c) for p in prompts for c in (contexts if len(p.split()) <= short else ("{}",))]


def in_contexts(prompts: Sequence[str], contexts: Sequence[str]) -> list[str]:
    """Each prompt in its sentences (see `placed`), each once."""
    return clean(c.format(p) for p, c in placed(prompts, contexts))


@dataclass(frozen=True, eq=False)
class Apartness:
    """What sets a concept apart from other things, as mean states.

    Attributes:
        contrast: `(1, d)` the concept's mean state less that of other things.
        held_out: `(1, d)` the same in sentences that no edit is made from.
        drawn: `(n, d)` other things, each scaled so that all move the values equally.
    """

    contrast: Tensor
    held_out: Tensor
    drawn: Tensor


def _equally(rows: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Rows `(n, d)` scaled so that each moves the values equally, a mean square of 1 a weight."""
    outputs = [rows @ w[:, : rows.shape[1]].double().cpu().T for w in values]
    sizes = torch.stack([y.square().sum(1) for y in outputs]).sum(0)
    return rows * (len(values) / len(rows) / sizes.clamp(min=1e-300)).sqrt()[:, None]


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
    retain_source: Literal["none", "listed", "background"] = "background"
    tokens: str = "all-but-bos"
    contexts: tuple[str, ...] = ("{}",)
    anchor: str | None = None
    near: float = NEAR

    def __post_init__(self) -> None:
        object.__setattr__(self, "forget", tuple(clean(self.forget)))
        object.__setattr__(self, "retain", tuple(clean(self.retain)))
        if not self.forget:
            raise ValueError("the forget prompts are empty; write at least one word")
        if self.retain and self.retain_source == "none":
            raise ValueError(
                "this method protects nothing, so it has no use for retain prompts; use another "
                "--method"
            )
        both = sorted({p.lower() for p in self.forget} & {p.lower() for p in self.retain})
        if both:
            raise ValueError(
                f"asked both to forget and to retain {both[0]!r}; take it out of one list"
            )

    @property
    def retain_prompts(self) -> list[str]:
        """Retain prompts by name: the user's, and neutral nouns unless one of them is to go."""
        if self.retain_source == "none":
            return list(self.retain)
        # "a photo of a bird" does not protect when birds are to go.
        words = {w for p in self.forget for w in p.lower().split()}
        return clean([*self.retain, *(p for p in neutral() if p.lower().split()[-1] not in words)])

    @cached_property
    def ordinary(self) -> dict[Stream, tuple[SecondMoment, ...]]:
        """Each stream's background by layer, less what is near the forget prompts."""
        everything = background(self.encoder)
        return everything.without(
            self.encoder, everything.near(meanings(self.encoder, list(self.forget)), self.near)
        )

    @cached_property
    def retain_moments(self) -> dict[Stream, SecondMoment]:
        """Each stream's retain moment, as the method's source has it."""
        if self.retain_source == "listed":
            listed = self.encoder.moments(
                self.retain_prompts, self.tokens, progress="retain prompts"
            )
            return {stream: together(layers) for stream, layers in listed.items()}
        if self.retain_source == "none":
            return {
                stream: SecondMoment.zeros(width) for stream, width in self.encoder.widths.items()
            }
        kept = {stream: together(layers) for stream, layers in self.ordinary.items()}
        if self.retain:
            own = self.encoder.moments(list(self.retain), RULE, progress="retain prompts")
            kept = {
                stream: moment + together(own[stream]).weighing(OWN * moment.count)
                for stream, moment in kept.items()
            }
        return kept

    @cached_property
    def forget_moments(self) -> dict[Stream, tuple[SecondMoment, ...]]:
        """Each stream's forget moment by layer."""
        prompts = in_contexts(self.forget, self.contexts)
        return self.encoder.moments(
            prompts, self.tokens, length=positions(self.encoder), progress="forget prompts"
        )

    @cached_property
    def forget_subjects(self) -> dict[Stream, Tensor]:
        """The state of each forget prompt that methods with a target move.

        Its last subject token, or what the token rule says if that picks one state; in this case of
        the prompt in every context. In each layer.
        """
        if self.tokens not in SINGLE:
            return self.encoder.subjects(self.forget)
        told = [c.format(p) for p, c in placed(self.forget, self.contexts)]
        return self.encoder.subjects(told, self.tokens)

    @cached_property
    def retain_subjects(self) -> dict[Stream, Tensor]:
        """The same of the retain prompts that are looked at one by one."""
        # A background has the neutral nouns in it; what the user names is looked at prompt by
        # prompt.
        return self.encoder.subjects(
            self.retain if self.retain_source == "background" else self.retain_prompts
        )

    @cached_property
    def named(self) -> list[PromptStates]:
        """The states of the prompts that the user named to keep."""
        return list(self.encoder.stream(self.retain)) if self.retain else []

    @cached_property
    def null(self) -> PromptStates:
        """The empty prompt's states."""
        return self.encoder.encode([""])

    def apartness(self, values: Sequence[Tensor]) -> Apartness:
        """What sets the forget prompts apart from other things that the model can draw.

        A tokenizer's vocabulary is full of words that draw nothing. Those whose mean state moves
        the values most are what a concept is compared with, in the same sentences.

        Args:
            values: Weights whose outputs are what attention passes on.
        """
        everything, width = background(self.encoder), self.encoder.width
        near = set(everything.near(meanings(self.encoder, list(self.forget)), self.near))
        means = everything.means.double()
        centred = means - means.mean(0)
        sizes = torch.stack(
            [(centred @ w[:, :width].double().cpu().T).square().sum(1) for w in values]
        ).sum(0)
        order = [i for i in sizes.argsort(descending=True).tolist() if i not in near]
        top = order[: max(1, int(DRAWN * len(means)))]
        others = means[top].mean(0)
        spared = [means[top] - others]
        if self.named:  # together they count as much as all other things
            spared.append(torch.cat([s.means(RULE) for s in self.named]).double() - others)
        words = list(dict.fromkeys(everything.prompts[i].split()[-1] for i in top))[:COMPARED]
        return Apartness(
            contrast=self._means(self.forget, TEMPLATES) - others,
            held_out=self._means(self.forget, HELD_OUT) - self._means(words, HELD_OUT),
            drawn=torch.cat([_equally(rows, values) for rows in spared]),
        )

    def _means(self, prompts: Sequence[str], contexts: Sequence[str]) -> Tensor:
        """`(1, d)` the mean token state of some prompts in some sentences."""
        states = self.encoder.stream(in_contexts(prompts, contexts), length=LENGTH)
        return torch.cat([s.means(RULE) for s in states]).double().mean(0, keepdim=True)

    def drifts(
        self, edit: LowRankEdit, edits: Mapping[str, TwoSidedEdit], values: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """How far each prompt that the user named moves, relative to its norm.

        Args:
            edit: The edit of the token states.
            edits: What happens to each value weight; empty without left sides.
            values: These weights by name.

        Returns:
            By prompt, the change of its states or, with left sides, of the values' outputs.
        """
        found: dict[str, float] = {}
        for states in self.named:
            for i, prompt in enumerate(states.prompts):
                rows = torch.cat(states.one(i).every(RULE)).double()
                old, new = rows, edit.apply_to_features(rows)
                if edits:
                    wide = {n: w[:, : edit.width].double().cpu() for n, w in values.items()}
                    old = torch.cat([rows @ w.T for w in wide.values()], dim=1)
                    changed = [edits[n].apply_to_weight(w) for n, w in wide.items()]
                    new = torch.cat([rows @ w.T for w in changed], dim=1)
                found[prompt] = float((new - old).norm() / old.norm().clamp(min=1e-300))
        return found

    def problem(self, stream: Stream = TOKENS, gram: Tensor | None = None) -> Problem:
        """All that a method may see of one stream.

        Args:
            stream: "tokens" or "pooled".
            gram: `Σ WᵀW` of the weights that read it.
        """
        own, *others = self.null.every("all", stream)
        return Problem(
            forget=together(self.forget_moments[stream]),
            retain=self.retain_moments[stream],
            null=own,
            other_nulls=torch.cat([own[:0], *others]),
            concepts=self.forget_subjects[stream],
            anchors=self._anchors(stream),
            kept=self.retain_subjects[stream],
            named=torch.cat([rows for s in self.named for rows in s.every(RULE, stream)])
            if self.named
            else torch.zeros(0, 0),
            weight_gram=gram if gram is not None else torch.zeros(0, 0),
        )

    def _anchors(self, stream: Stream) -> Tensor:
        if self.anchor is None:
            return torch.zeros(0, self.encoder.widths[stream])
        # The empty anchor is BOS, as in the code of UCE and its kin; any other its last subject
        # token. A closing state moves to that of the same sentence with the anchor in it.
        if self.tokens == "eos":
            told = [c.format(self.anchor) for _, c in placed(self.forget, self.contexts)]
            return self.encoder.subjects(told, "eos")[stream]
        if self.anchor.strip() or stream == POOLED:
            target = self.encoder.subjects([self.anchor])[stream]
        else:
            target = torch.cat([s.states[0, :1] for s in self.null.layers]).double()
        return target.repeat(len(self.forget_subjects[stream]) // len(target), 1)
