"""What was done on the page, in Python and as shell commands, and names of its files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from erase_sd.erasure import Erasure, combine
from erase_sd.pipelines.loading import EMBEDDED


def file_name(total: Erasure, kind: str) -> str:
    """Name of a file to take home: plain ASCII, short, told by its concepts.

    Args:
        total: What is in it.
        kind: "erasure", "peft" or "kohya".
    """
    names = "-".join(total.names).lower().encode("ascii", "replace").decode()
    return f"no-{re.sub('[^a-z0-9]+', '-', names).strip('-')[:60]}.{kind}.safetensors"


def python_code(name: str, stack: Sequence[Erasure], scale: float, *, brought: bool = False) -> str:
    """Python code that does what was just done.

    Args:
        name: The model.
        stack: The erasures.
        scale: Times their own strength.
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
        lines += [f"apply(pipe, Erasure.load({file!r}))"]
        return "\n".join([*lines, 'pipe("a photo of a cat").images[0]'])
    lines = ["from erase_sd import EraseStableDiffusionPipeline", *lines]
    read = "from_single_file" if name.endswith(".safetensors") else "from_pretrained"
    lines += ["", f"pipe = EraseStableDiffusionPipeline.{read}({where})"]
    for part in (p for e in stack for p in e.parts):
        more = [
            f"name={part.name!r}",
            f"method={part.method!r}",
            f"strength={part.strength * scale:g}",
        ]
        if part.retain:
            more.insert(0, f"retain={list(part.retain)!r}")
        if part.options.get("robust"):
            more.append("robust=True")
        lines.append(f"pipe.erase({list(part.forget)!r}, {', '.join(more)})")
    return "\n".join([*lines, 'pipe("a photo of a cat").images[0]'])


def shell_commands(
    name: str, stack: Sequence[Erasure], scale: float, *, brought: bool = False
) -> str:
    """Shell commands that do what was just done; arguments as for `python_code`."""
    model = [] if name == EMBEDDED else ["--model", name]
    if brought:
        file = file_name(combine(stack), "erasure")
        return shlex.join(["erase-concept", "apply", file, *model, "--out", "erased"])
    lines, made = [], []
    parts = [p for e in stack for p in e.parts]
    for i, part in enumerate(parts):
        out = "erased" if len(parts) == 1 else f"erased-{i + 1}"
        words = ["erase-concept", "erase", *model]
        for key, prompts in (("--forget", part.forget), ("--retain", part.retain)):
            words += [w for p in prompts for w in (key, p)]
        words += ["--name", part.name, "--method", part.method]
        words += ["--strength", f"{part.strength * scale:g}"]
        words += ["--robust"] if part.options.get("robust") else []
        lines.append(shlex.join([*words, "--out", out]))
        made.append(out)
    if len(made) > 1:
        lines.append(shlex.join(["erase-concept", "apply", *made, *model, "--out", "erased"]))
    return "\n".join(lines)
