"""What was done on the page, in Python and as shell commands, and names of its files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.models.embedded import EMBEDDED


def file_name(total: Erasure, kind: str) -> str:
    """Name of a file to take home: plain ASCII, short, told by its concepts.

    Args:
        total: What is in it.
        kind: "erasure", or a style of LoRA.
    """
    names = "-".join(total.names).lower().encode("ascii", "replace").decode()
    return f"no-{re.sub('[^a-z0-9]+', '-', names).strip('-')[:60]}.{kind}.safetensors"


def python_code(name: str, stack: Sequence[Erasure], scale: float, *, brought: bool = False) -> str:
    """Python code that does what was just done.

    Args:
        name: The model.
        stack: The erasures.
        scale: What multiplies their change.
        brought: Whether a file was added: how it was made is not all in it, so the code reads what
            is taken home.
    """
    where = "EMOJI_SD" if name == EMBEDDED else repr(name)
    lines = ["from erase_sd.emoji.models import EMOJI_SD"] if name == EMBEDDED else []
    if brought or stack[0].architecture != "sd":
        file = file_name(combine(stack), "erasure")
        lines = [
            "from diffusers import DiffusionPipeline",
            "from erase_sd import Erasure, apply",
            *lines,
        ]
        lines += ["", f"pipe = DiffusionPipeline.from_pretrained({where})"]
        lines += [f"apply(Erasure.load({file!r}), pipe)"]
        return "\n".join([*lines, 'pipe("a photo of a cat").images[0]'])
    lines = ["from erase_sd import EraseStableDiffusionPipeline, Settings", *lines]
    read = "from_single_file" if name.endswith(".safetensors") else "from_pretrained"
    lines += ["", f"pipe = EraseStableDiffusionPipeline.{read}({where})"]
    for concept in (c for e in stack for c in e.concepts):
        how = [repr(concept.method), *(["robust=True"] if concept.left else [])]
        how += [f"toward={concept.options['toward']!r}"] if "toward" in concept.options else []
        how += [f"strength={concept.strength:g}"]
        more = [f"name={concept.name!r}", f"settings=Settings({', '.join(how)})"]
        if concept.retain:
            more.insert(0, f"retain={list(concept.retain)!r}")
        lines.append(f"pipe.erase({list(concept.forget)!r}, {', '.join(more)})")
    if scale != 1:
        lines.insert(1, "from erase_sd.pipelines import LiveErasure")
        lines.append(f"LiveErasure.of(pipe).set_scale({scale:g})")
    return "\n".join([*lines, 'pipe("a photo of a cat").images[0]'])


def shell_commands(
    name: str, stack: Sequence[Erasure], scale: float, *, brought: bool = False
) -> str:
    """Shell commands that do what was just done; arguments as for `python_code`."""
    model = [] if name == EMBEDDED else ["--model", name]
    scaled = [] if scale == 1 else ["--scale", f"{scale:g}"]
    if brought:  # what is taken home has its scale in it
        file = file_name(combine(stack), "erasure")
        return shlex.join(["erase-concept", "apply", file, *model, "--out", "erased"])
    lines, made = [], []
    concepts = [c for e in stack for c in e.concepts]
    alone = len(concepts) == 1 and not scaled
    for i, concept in enumerate(concepts):
        out = "erased" if alone else f"erased-{i + 1}"
        words = ["erase-concept", "erase", *model]
        for key, prompts in (("--forget", concept.forget), ("--retain", concept.retain)):
            words += [w for p in prompts for w in (key, p)]
        words += ["--name", concept.name, "--method", concept.method]
        words += ["--robust"] if concept.left else []
        words += ["--toward", concept.options["toward"]] if "toward" in concept.options else []
        words += ["--strength", f"{concept.strength:g}"]
        lines.append(shlex.join([*words, "--out", out]))
        made.append(out)
    if not alone:
        apply = ["erase-concept", "apply", *made, *model, *scaled, "--out", "erased"]
        lines.append(shlex.join(apply))
    return "\n".join(lines)
