"""`erase-concept`: one module per subcommand, imported only when it is asked for."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from erase_sd._version import __version__

COMMANDS = {
    "erase": "take a concept out of a model and write the erased checkpoint",
    "preflight": "what an erasure would hit, in seconds, without an image",
    "apply": "bake an erasure file into a checkpoint",
    "remove": "take concepts out of an erasure file again",
    "export": "write an erasure as a PEFT or kohya LoRA",
    "verify": "check an erasure file or an erased checkpoint",
    "card": "a model card for what you publish",
    "push": "an erasure on the Hugging Face Hub, with its card",
    "eval": "run, compare and report evaluations by protocol",
    "vision": "unlearn classes and samples from classifiers, ViTs and CLIP",
    "train": "erase by training, as rival methods do, to compare with",
    "demo": "erase concepts in the browser",
    "generate": "images from a model, with or without an erasure",
    "prompts": "list or show prompt sets",
    "methods": "list the methods, their options and sources",
    "doctor": "what interrupted commands left behind, and remove it",
}

LONGEST = 1_000  # characters of an error's line
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
    # Threads that wait sleep: spinning, they would keep each other and everybody else off the
    # cores. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
    return _told(name, _run(name, argv[1:]))


def _run(name: str, argv: list[str]) -> int:
    try:
        with _orderly():
            code: int = importlib.import_module(f"erase_sd.cli.{name}").run(argv)
        return code
    except (ValueError, FileExistsError) as error:
        return _fail(name, error, 2)
    except (OSError, MemoryError) as error:
        return _fail(name, error, 1)
    except RuntimeError as error:  # torch's: out of memory, no such device
        return _fail(name, error, 1)
    except SystemExit as done:  # argparse: --help, or wrong use that it has already told
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        print("\nerase-concept: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except Ended as wish:
        number = int(wish.args[0])
        told = f"ended by {signal.Signals(number).name}; nothing was left half-written"
        print(f"erase-concept: {told}", file=sys.stderr)
        return 128 + number
    except (
        Exception
    ) as error:  # a fault of ours: one line for the user, everything for us on request
        if os.environ.get("ERASE_SD_DEBUG"):
            raise
        advice = "ERASE_SD_DEBUG=1 shows where; please report it"
        text = f"unexpected {type(error).__name__}: {error} ({advice})"
        return _fail(name, RuntimeError(text), 1)


class Ended(BaseException):
    """A request of the system to end: what was begun is cleaned up on the way out."""


@contextmanager
def _orderly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, unless somebody else listens to them."""
    came: list[int] = []

    def end(number: int, _: FrameType | None) -> NoReturn:
        came.append(number)
        raise _wish(number)

    usual: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL}
    usual[signal.SIGINT] = signal.default_int_handler
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    usual = {n: handler for n, handler in usual.items() if signal.getsignal(n) is handler}
    for number in usual:
        signal.signal(number, end)
    try:
        yield
    except Exception as error:
        if came:  # a library's C code took what the handler raised for an error of its own
            raise _wish(came[0]) from error
        raise
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _wish(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)


def _told(name: str, code: int) -> int:
    """The exit code, once what was said is through: the result stands, but who asked must know."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would be tried, and fail, once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == 0:
            return _fail(name, OSError(f"done, but stdout did not take what was said: {error}"), 1)
    return code


def _fail(name: str, error: BaseException, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} …"
    # What a message repeats may come from a file: no escape of it reaches the terminal.
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    print(f"erase-concept {name}: error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
