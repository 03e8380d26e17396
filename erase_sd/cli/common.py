"""What the subcommands share: arguments, quiet libraries, model resolution."""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from erase_sd.methods import DEFAULT, METHODS

EMBEDDED = "emoji-sd"


def parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser that shows examples and keeps their layout."""
    return argparse.ArgumentParser(
        prog=f"erase-concept {command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(p: argparse.ArgumentParser) -> None:
    """`--model` and `--variant`."""
    p.add_argument(
        "--model",
        default=EMBEDDED,
        metavar="FOLDER",
        help=f"diffusers folder of the base model (default: {EMBEDDED}, the small one in this package)",
    )
    p.add_argument("--variant", default="", help="weights variant in that folder, e.g. fp16")


def add_concept(p: argparse.ArgumentParser) -> None:
    """`--forget`, `--retain` and the method's options."""
    p.add_argument(
        "--forget",
        action="append",
        required=True,
        metavar="PROMPT",
        help="what to forget: a prompt, set:NAME or file:PATH (one prompt a line); repeatable",
    )
    p.add_argument(
        "--retain", action="append", default=[], metavar="PROMPT", help="what to keep besides the defaults; likewise"
    )
    p.add_argument("--method", default=DEFAULT, choices=METHODS, help=f"default: {DEFAULT}; see `methods`")
    p.add_argument("--rank", type=int, help="directions to remove (methods that have a rank)")
    p.add_argument("--epsilon", type=float, help="relative ridge (methods that have one)")
    p.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="any other option of the method; repeatable"
    )
    p.add_argument("--strength", type=float, default=1.0, help="0 changes nothing, 1 is the method's own (default)")
    p.add_argument(
        "--robust",
        action="store_true",
        help="also erase synonyms the text encoder knows and the embeddings that would revive the concept",
    )
    p.add_argument("--tokens", help="token rule of the forget features; see `methods`")
    p.add_argument("--toward", metavar="PROMPT", help="where methods with a target move the concept")
    p.add_argument("--name", help="name of the concept in the erasure file (default: the first prompt)")


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """The method's options from `--rank`, `--epsilon` and `--option`, in their defaults' types."""
    spec = METHODS[args.method]
    given: dict[str, Any] = {k: getattr(args, k) for k in ("rank", "epsilon") if getattr(args, k) is not None}
    for pair in args.option:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"expected --option NAME=VALUE, got {pair!r}")
        given[key] = value
    options: dict[str, Any] = {}
    for key, value in given.items():
        if key not in spec.options:
            raise ValueError(f"{args.method} has no option {key!r}; it has {', '.join(spec.options)}")
        default = spec.options[key]
        try:
            if isinstance(default, bool):
                options[key] = str(value).lower() in ("1", "true", "yes", "on")
            else:
                options[key] = type(default)(value)
        except ValueError as error:
            raise ValueError(f"option {key}: expected a {type(default).__name__}, got {value!r}") from error
    return options


def model_path(name: str) -> Path:
    """Where a model lies; `emoji-sd` is the embedded one."""
    if name == EMBEDDED and not Path(name).exists():
        from erase_sd.emoji.models import EMOJI_SD

        return EMOJI_SD
    return Path(name)


def is_embedded(path: Path) -> bool:
    """Whether a model is the embedded one, whose world the judge knows."""
    from erase_sd.emoji.models import EMOJI_SD

    return path.resolve() == EMOJI_SD.resolve()


def quiet_libraries() -> None:
    """Silence what libraries say about themselves; our own warnings stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.basicConfig(format="erase-concept: %(message)s", level=logging.WARNING)
    logging.getLogger("erase_sd").setLevel(logging.INFO)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def load_pipeline(path: Path, *, variant: str = "", device: str = "cpu") -> Any:
    """A plain StableDiffusionPipeline of a local folder, float32 on the CPU."""
    import torch
    from diffusers import StableDiffusionPipeline

    kind = device.split(":")[0]
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"no {kind} device here; use --device cpu")
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"expected --device cpu, cuda or mps, got {device!r}")
    pipe = StableDiffusionPipeline.from_pretrained(
        path, dtype=torch.float32, variant=variant or None, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def print_json(value: Any) -> None:
    """JSON on stdout, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
