"""What one job may take: time, looked at before each pass through a network, and memory."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn

_CURRENT: ContextVar[Budget | None] = ContextVar("erase_sd_demo_budget", default=None)


class OverBudget(ValueError):
    """A job wanted more than one job may have, or nobody waits for it any more."""


class Budget:
    """Time that a job may compute; waiting does not count.

    Args:
        seconds: How long.

    >>> budget = Budget(60)
    >>> with budget.spending():
    ...     check()  # there is time left
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.spent = 0.0
        self.stopped = False
        self._since: float | None = None

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count what is done inside, and let `check` know of this budget."""
        token = _CURRENT.set(self)
        self._since = time.monotonic()
        try:
            self.check()
            yield
        finally:
            self.spent += time.monotonic() - self._since
            self._since = None
            _CURRENT.reset(token)

    def check(self) -> None:
        """Go on, or not.

        Raises:
            OverBudget: If the time is spent, or the job was stopped.
        """
        if self.stopped:
            raise OverBudget("stopped")
        now = 0.0 if self._since is None else time.monotonic() - self._since
        if self.spent + now > self.seconds:
            raise OverBudget(f"stopped: a job may compute for {self.seconds:g} s here")


def check() -> None:
    """Ask the budget of the job that runs in this thread, if there is one.

    Raises:
        OverBudget: If it is spent.
    """
    budget = _CURRENT.get()
    if budget is not None:
        budget.check()


def watch(module: nn.Module) -> None:
    """Ask the budget before every pass through a network, so that no job is longer by more."""
    module.register_forward_pre_hook(lambda *_: check())


@contextlib.contextmanager
def bounded_memory(extra: int) -> Iterator[None]:
    """Let the process grow by so many bytes inside, and refuse what asks for more.

    The system enforces it where it can (Linux), for host memory. Jobs run one at a time, so the
    growth is the job's.

    Args:
        extra: Bytes.

    Raises:
        OverBudget: If an allocation was refused, here or by an accelerator.
    """
    try:
        with _data_limit(extra):
            yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OverBudget(_too_much(extra)) from error
    except RuntimeError as error:
        told = str(error).lower()  # torch has no type of its own for it
        if "can't allocate memory" not in told and "cannot allocate memory" not in told:
            raise
        raise OverBudget(_too_much(extra)) from error


@contextlib.contextmanager
def _data_limit(extra: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:  # a kernel that does not tell
        yield
        return
    wanted = 1024 * int(found[1]) + extra
    bounds = [b for b in (wanted, soft, hard) if b != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _too_much(extra: int) -> str:
    return f"stopped: a job may take {extra / 1e9:g} GB of memory here"
