"""What the subcommands share: arguments, quiet libraries, model resolution."""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from erase_sd.algebra.methods import DEFAULT, METHODS
from erase_sd.models.embedded import EMBEDDED

if TYPE_CHECKING:
    from erase_sd.fit.solve import Settings
    from erase_sd.models.checkpoint import Checkpoint
    from erase_sd.operations.common import Run, Source


class Result(Protocol):
    """What an operation returns."""

    def json(self) -> dict[str, Any]:
        """For programs."""

    def lines(self) -> list[str]:
        """For people."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are told as all others are: in one line, without raw escapes."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser that shows examples and keeps their layout."""
    return _Parser(
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
        help="base model: diffusers folder, single .safetensors file or Hub id "
        f"(default: {EMBEDDED}, the small one in this package)",
    )
    p.add_argument("--variant", default="", help="weights variant of a folder or Hub id, e.g. fp16")
    p.add_argument("--revision", help="branch, tag or commit of a Hub id")
    p.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="tokenizer of a single file (default: CLIP's, from the Hub)",
    )
    p.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read a .ckpt, by torch's loader of tensors alone",
    )


def source_of(args: argparse.Namespace) -> Source:
    """How the model of `add_model`'s arguments is found and read."""
    from erase_sd.operations.common import Source

    tokenizer = {"tokenizer": args.tokenizer} if args.tokenizer else {}
    return Source(
        variant=args.variant, revision=args.revision, allow_pickle=args.allow_pickle, **tokenizer
    )


def open_model(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint of `add_model`'s arguments; no weight is loaded."""
    from erase_sd.operations.common import open_model as opened

    return opened(args.model, source_of(args))


def add_output(
    p: argparse.ArgumentParser, what: str, *, required: bool = True, undo: bool = False
) -> None:
    """`--out`, `--force`, `--json` and, where a checkpoint is written.

    `--keep-undo` and `--dry-run`.
    """
    p.add_argument("--out", type=Path, required=required, help=what)
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--json", action="store_true", help="what was done, as JSON on stdout")
    if undo:
        p.add_argument(
            "--keep-undo",
            action="store_true",
            help="also write OUT.undo.safetensors, for `remove`: keep it private, "
            "it holds the concept",
        )
        p.add_argument(
            "--dry-run", action="store_true", help="check and compute everything, write nothing"
        )


def run_of(args: argparse.Namespace) -> Run:
    """How to run, from whatever of these arguments a command has."""
    from erase_sd.operations.common import Run

    names = ("device", "force", "keep_undo", "dry_run")
    given: dict[str, Any] = {k: v for k, v in vars(args).items() if k in names}
    if "revision" in args:
        given["source"] = source_of(args)
    return Run(**given)


def report(args: argparse.Namespace, result: Result) -> None:
    """Say what was done: in lines for people, or as JSON for programs."""
    if args.json:
        print_json(result.json())
    else:
        print("\n".join(result.lines()))


def add_prompts(p: argparse.ArgumentParser, *, retain: str) -> None:
    """`--forget` and `--retain`.

    Args:
        p: Where they are added.
        retain: What is done with the prompts of `--retain`.
    """
    what = "a prompt, set:NAME or file:PATH (one prompt a line); repeatable"
    p.add_argument(
        "--forget", action="append", required=True, metavar="PROMPT", help=f"what to forget: {what}"
    )
    p.add_argument(
        "--retain", action="append", default=[], metavar="PROMPT", help=f"{retain}; likewise"
    )


def add_concept(p: argparse.ArgumentParser) -> None:
    """`--forget`, `--retain` and the method's options."""
    add_prompts(p, retain="what to keep besides the defaults")
    p.add_argument(
        "--method",
        default=DEFAULT,
        choices=list(METHODS),
        help=f"default: {DEFAULT}; see `methods`",
    )
    p.add_argument("--rank", type=int, help="directions to remove (methods that have a rank)")
    p.add_argument("--epsilon", type=float, help="relative ridge (methods that have one)")
    p.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of the method; repeatable",
    )
    p.add_argument(
        "--strength",
        type=float,
        help="0 changes nothing, 1 projects out (default: the method's own)",
    )
    p.add_argument(
        "--robust",
        action="store_true",
        help="also erase synonyms the text encoder knows, and let no input write what sets the "
        "concept apart; it costs more of what should stay",
    )
    p.add_argument("--tokens", help="token rule of the forget features; see `methods`")
    p.add_argument(
        "--toward", metavar="PROMPT", help="where methods with a target move the concept"
    )
    p.add_argument(
        "--name", help="name of the concept in the erasure file (default: the first prompt)"
    )


def prompts_of(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The forget and retain prompts, sets and files read; sets bring what they ask to keep."""
    from erase_sd.prompts import neutral_of, read_prompts

    forget = read_prompts(args.forget, what="forget")
    return forget, read_prompts([*args.retain, *neutral_of(args.forget)], what="retain")


def options_of(args: argparse.Namespace) -> dict[str, str]:
    """What `--option NAME=VALUE` gives."""
    given = {}
    for pair in args.option:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"expected --option NAME=VALUE, got {pair!r}")
        given[key] = value
    return given


def settings_of(args: argparse.Namespace) -> Settings:
    """How to erase, from `--method`, `--option` and the rest."""
    from erase_sd.fit.solve import Settings

    given: dict[str, Any] = {
        k: getattr(args, k) for k in ("rank", "epsilon") if getattr(args, k) is not None
    }
    given |= options_of(args)
    settings = Settings(
        method=args.method,
        toward=args.toward,
        tokens=args.tokens,
        strength=args.strength,
        robust=args.robust,
        options=given,
    )
    settings.spec.make_options(given)  # refused before anything is loaded
    return settings


def quiet_libraries() -> None:
    """Silence what libraries say about themselves; our own warnings stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.basicConfig(format="erase-concept: %(message)s", level=logging.WARNING)
    logging.getLogger("erase_sd").setLevel(logging.INFO)


def print_json(value: Any) -> None:
    """JSON on stdout, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
