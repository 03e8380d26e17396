"""The model card of an erasure or an erased model.

What was done, how to check it, what it cannot do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.report import certificate_lines, escaped, options_text

SHOWN = 20  # prompts of a long list


@dataclass(frozen=True)
class Publication:
    """What a card says that the erasure does not know.

    Attributes:
        name: Name of the file or folder that is published.
        base: Hub id of the base model, or "".
        license: Licence of the base model as the Hub names it, or "".
        picture: Whether `before_after.png` lies beside the card.
        evaluation: Lines of a results table, Markdown.
    """

    name: str
    base: str = ""
    license: str = ""
    picture: bool = False
    evaluation: Sequence[str] = ()


def card(erasure: Erasure, about: Publication) -> str:
    """The card in Markdown with the Hub's metadata.

    All it says is read from the erasure and `about`.
    """
    names = ", ".join(escaped(n) for n in erasure.names)
    lines = ["---", "library_name: diffusers", "tags: [text-to-image, concept-erasure, erase-sd]"]
    lines += (
        [f"base_model: {json.dumps(about.base)}", "base_model_relation: finetune"]
        if about.base
        else []
    )
    lines += [f"license: {json.dumps(about.license)}"] if about.license else []
    base = escaped(about.base) or "A text-to-image model"
    lines += [
        "---",
        "",
        f"# {escaped(about.name)}: without {names}",
        "",
        f"{base} from which {names} has been erased by closed-form edits of the tensors that read "
        "the text. "
        "Nothing was trained; every other tensor is the base model's.",
        "",
    ]
    if about.picture:
        lines += ["![the same prompts and seeds before and after](before_after.png)", ""]
    lines += ["## What was erased", ""]
    for concept in erasure.concepts:
        lines += _concept(concept)
    if about.evaluation:
        lines += ["## Evaluation", "", *about.evaluation, ""]
    return "\n".join([*lines, *_ending(about.name, len(erasure.base))]) + "\n"


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


def _ending(name: str, tensors: int) -> list[str]:
    return [
        "## Checking and undoing",
        "",
        f"`erase-concept verify {escaped(name)} --model BASE` recomputes every edited tensor from "
        "the base model and "
        f"says whether this is what it claims to be. {tensors} tensors are edited; the erasure "
        "file holds the edit "
        "itself, so that concepts can be taken out of it again (`erase-concept remove`).",
        "",
        "## Limits",
        "",
        "- Fine-tuning, or a LoRA that was trained on the concept, can bring it back.",
        "- Names that are far from every forget prompt may survive, and so may what no prompt "
        "names.",
        "- This is one safeguard, not a guarantee: filter outputs as well where it matters.",
    ]
