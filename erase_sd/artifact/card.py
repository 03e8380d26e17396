"""The model card of an erasure or an erased model.

What was done, how to check it, what it cannot do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.report import certificate_lines, escaped, options_text

SHOWN = 20  # prompts of a long list
Relation = Literal["adapter", "finetune"]


@dataclass(frozen=True)
class Publication:
    """What a card says that the erasure does not know.

    Attributes:
        name: Name of the file or folder that is published, or Hub id.
        base: Hub id of the base model, or "".
        license: Licence as the Hub names it, or "".
        picture: Whether `before_after.png` lies beside the card.
        evaluation: Lines of a results table, Markdown.
        relation: What it is to its base, as the Hub says it: an erasure file is an "adapter", an
            erased checkpoint a "finetune".
    """

    name: str
    base: str = ""
    license: str = ""
    picture: bool = False
    evaluation: Sequence[str] = ()
    relation: Relation = "adapter"


def card(concepts: Sequence[ErasedConcept], about: Publication, *, tensors: int) -> str:
    """The card in Markdown with the Hub's metadata.

    Args:
        concepts: What was erased.
        about: What else is said.
        tensors: How many tensors are edited.
    """
    names = ", ".join(escaped(c.name) for c in concepts)
    lines = [*_metadata(about), "", f"# {escaped(about.name)}: without {names}", ""]
    base = escaped(about.base) or "a text-to-image model"
    if about.relation == "adapter":
        first = f"An erasure that takes {names} out of {base}: "
    else:
        first = f"{base[:1].upper()}{base[1:]} from which {names} has been erased: "
    edited = "closed-form edits of the tensors that read the text."
    lines += [f"{first}{edited} Nothing was trained; every other tensor is the base model's.", ""]
    if about.relation == "adapter":
        lines += _use(about)
    if about.picture:
        lines += ["![the same prompts and seeds before and after](before_after.png)", ""]
    lines += ["## What was erased", ""]
    for concept in concepts:
        lines += _concept(concept)
    if about.evaluation:
        lines += ["## Evaluation", "", *about.evaluation, ""]
    return "\n".join([*lines, *_ending(about, tensors)]) + "\n"


def _metadata(about: Publication) -> list[str]:
    lines = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    lines += ["tags: [text-to-image, concept-erasure, erase-sd]"]
    if about.base:
        lines += [f"base_model: {json.dumps(about.base)}"]
        lines += [f"base_model_relation: {about.relation}"]
    lines += [f"license: {json.dumps(about.license)}"] if about.license else []
    return [*lines, "---"]


def _use(about: Publication) -> list[str]:
    """How an erasure is used; both names are written as Python's own strings."""
    return [
        "```python",
        "from diffusers import DiffusionPipeline",
        "from erase_sd import apply",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({about.base or 'BASE'!r})",
        f"apply({about.name!r}, pipe)",
        "```",
        "",
    ]


def _concept(concept: ErasedConcept) -> list[str]:
    lines = [f"### {escaped(concept.name)}", "", f"Forget prompts: {_prompts(concept.forget)}.", ""]
    if concept.retain:
        lines += [f"Retain prompts: {_prompts(concept.retain)}.", ""]
    options = escaped(options_text(concept.options))
    lines += [f"Method {escaped(concept.method)} ({options}), strength {concept.strength:g}.", ""]
    return [*lines, *(f"- {escaped(line)}" for line in certificate_lines(concept)), ""]


def _prompts(prompts: Sequence[str]) -> str:
    more = f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else ""
    return ", ".join(f"“{escaped(p)}”" for p in prompts[:SHOWN]) + more


def _ending(about: Publication, tensors: int) -> list[str]:
    return [
        "## Checking and undoing",
        "",
        f"`erase-concept verify {escaped(about.name)} --model BASE` recomputes every edited "
        "tensor from the base model and says whether this is what it claims to be. "
        f"{tensors} tensors are edited; the erasure file holds the edit itself, so that concepts "
        "can be taken out of it again (`erase-concept remove`).",
        "",
        "## Limits",
        "",
        "- Fine-tuning, or a LoRA that was trained on the concept, can bring it back.",
        "- Names that are far from every forget prompt may survive, and so may what no prompt "
        "names.",
        "- This is one safeguard, not a guarantee: filter outputs as well where it matters.",
    ]
