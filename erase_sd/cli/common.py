"""What the subcommands share: arguments, quiet libraries, model resolution."""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from erase_sd.methods import DEFAULT, METHODS
from erase_sd.pipelines.loading import EMBEDDED, model_path

if TYPE_CHECKING:
    from erase_sd.checkpoints import Checkpoint


def parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser that shows examples and keeps their layout."""
    return argparse.ArgumentParser(
        prog=f"erase-concept {command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def dispatch(
    command: str,
    description: str,
    examples: str,
    argv: list[str],
    actions: Mapping[str, tuple[Callable[[list[str]], int], str]],
) -> int:
    """Run one action of a command; its help has a line for each."""
    if not argv or argv[0] in ("-h", "--help"):
        told = "\n".join(f"  {name:<10}{text}" for name, (_, text) in actions.items())
        description += f"\n\nactions (each has its own --help):\n{told}"
        p = parser(command, description, examples)
        p.usage = f"erase-concept {command} ACTION [options]"
        p.print_help()
        return 0 if argv else 2
    if argv[0] not in actions:
        raise ValueError(f"no action {argv[0]!r}; there are {', '.join(actions)}")
    return actions[argv[0]][0](argv[1:])


def add_model(p: argparse.ArgumentParser) -> None:
    """`--model` and what belongs to finding and reading one."""
    p.add_argument(
        "--model",
        default=EMBEDDED,
        metavar="MODEL",
        help=f"base model: diffusers folder, single .safetensors file or Hub id (default: {EMBEDDED}, the small one "
        "in this package)",
    )
    p.add_argument("--variant", default="", help="weights variant of a folder or Hub id, e.g. fp16")
    p.add_argument("--revision", help="branch, tag or commit of a Hub id")
    p.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer of a single file (default: CLIP's, from the Hub)")
    p.add_argument("--allow-pickle", action="store_true", help="read a .ckpt, by torch's loader of tensors alone")


def open_model(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint that `--model` names, downloaded if it is a Hub id; no weight is loaded."""
    from erase_sd.checkpoints import TOKENIZER, open_checkpoint

    path = model_path(args.model, variant=args.variant, revision=args.revision)
    return open_checkpoint(
        path, variant=args.variant, allow_pickle=args.allow_pickle, tokenizer=args.tokenizer or TOKENIZER
    )


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
    p.add_argument(
        "--strength",
        type=float,
        help="0 changes nothing, 1 projects out; default: the method's own, 1.25 (styles: 1.5) for rayleigh, else 1",
    )
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


def print_json(value: Any) -> None:
    """JSON on stdout, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
