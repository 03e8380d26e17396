"""`erase-concept`: one module per subcommand, imported only when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys

from erase_sd._version import __version__

COMMANDS = {
    "erase": "take a concept out of a model and write the erased checkpoint",
    "preflight": "what an erasure would hit, in seconds, without an image",
    "apply": "bake an erasure file into a checkpoint",
    "remove": "take concepts out of an erasure file again",
    "export": "write an erasure as a PEFT or kohya LoRA",
    "verify": "check an erasure file or an erased checkpoint",
    "card": "a model card for what you publish",
    "eval": "run, compare and report evaluations by protocol",
    "vision": "unlearn classes and samples from classifiers, ViTs and CLIP",
    "train": "erase by training, as rival methods do, to compare with",
    "demo": "erase concepts in the browser",
    "generate": "images from a model, with or without an erasure",
    "prompts": "list or show prompt sets",
    "methods": "list the methods, their options and sources",
}

USAGE = """usage: erase-concept COMMAND [options]

Take a concept out of a text-to-image model, without training.

commands:
{commands}

examples:
  erase-concept erase --forget cat                        on the small model inside this package
  erase-concept erase --model ./sd15 --forget set:nudity --out ./sd15-safe
  erase-concept erase --help                              every command teaches itself

exit codes: 0 done, 1 a check failed or a disk did, 2 wrong use
"""


def usage() -> str:
    """The top-level help."""
    return USAGE.format(
        commands="\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items())
    )


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; every expected failure is one line on stderr and an exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"erase-sd {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(COMMANDS)}"
        print(f"erase-concept: no command {name!r}{hint}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"erase_sd.cli.{name}").run(argv[1:])
    except (ValueError, FileExistsError) as error:
        return _fail(name, error, 2)
    except (OSError, MemoryError) as error:
        return _fail(name, error, 1)
    except RuntimeError as error:  # the safetensors library reports a full disk this way
        return _fail(name, error, 1)
    except SystemExit as done:  # argparse: --help, or wrong use that it has already told
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        print("\nerase-concept: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except (
        Exception
    ) as error:  # a fault of ours: one line for the user, everything for us on request
        if os.environ.get("ERASE_SD_DEBUG"):
            raise
        advice = "ERASE_SD_DEBUG=1 shows where; please report it"
        text = f"unexpected {type(error).__name__}: {error} ({advice})"
        return _fail(name, RuntimeError(text), 1)


def _fail(name: str, error: BaseException, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"erase-concept {name}: error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
