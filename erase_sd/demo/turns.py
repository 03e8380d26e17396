"""Whose job the model works on: one at a time, and whoever was served last goes last."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from erase_sd.demo.budget import Budget
from erase_sd.demo.limits import Limits
from erase_sd.demo.visitor import Visitor

T = TypeVar("T")


class Busy(ValueError):
    """Too many jobs wait already."""


class Job:
    """One visitor's job: some steps, each done in the model's thread when it is the job's turn.

    Attributes:
        visitor: Whose it is.
        budget: What it may still take.
    """

    def __init__(self, turns: Turns, visitor: Visitor, budget: Budget) -> None:
        self.visitor = visitor
        self.budget = budget
        self.granted = asyncio.Event()
        self.sliced = 0.0  # seconds since the turn was given
        self.last = time.monotonic()  # when a step ended, or the turn was given
        self.working = False
        self.ended = False
        self._turns = turns

    async def wait(self, seconds: float) -> bool:
        """Wait for the turn.

        Args:
            seconds: How long at most; then somebody may be told, and wait again.

        Returns:
            Whether it has come.
        """
        self._turns.offer()
        try:
            await asyncio.wait_for(self.granted.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def step(self, function: Callable[[], T]) -> T:
        """Do a step in the model's thread, once the turn has come.

        A step that nobody waits for any more is stopped at its next pass through a network, and
        only then does the next job begin.

        Raises:
            OverBudget: If the job has taken its time.
        """
        while not await self.wait(60):
            pass

        def measured() -> T:
            with self.budget.spending():
                return function()

        self.working = True
        future = asyncio.get_running_loop().run_in_executor(self._turns.thread, measured)
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def ahead(self) -> int:
        """Jobs that go before this one as things stand."""
        return self._turns.ahead(self)

    def _done(self, future: asyncio.Future[T]) -> None:
        if not future.cancelled():
            future.exception()  # told to whoever waits; nobody does if the job has ended
        self._turns.stepped(self)


class Turns:
    """A fair queue.

    Next is the job of the address, and in it of the visitor, that was served longest ago. The jobs
    of one visitor follow one another. A job that has run for a slice lets others go first.

    Args:
        limits: How many may wait, and for how long each may run.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.thread = ThreadPoolExecutor(1, "model")
        self._jobs: list[Job] = []  # as they came
        self._holder: Job | None = None
        self._clock = itertools.count(1)
        self._served: dict[str, int] = {}  # by address and by visitor
        self._stopped = False

    def stop(self) -> None:
        """Stop every job at its next pass through a network, and begin no other."""
        self._stopped = True
        for job in self._jobs:
            job.budget.stopped = True

    @contextlib.contextmanager
    def job(self, visitor: Visitor) -> Iterator[Job]:
        """A job that waits from now on and is over at the end.

        Raises:
            Busy: If the visitor, the visitor's address or everybody has enough jobs waiting, or
                the demo ends.
        """
        if self._stopped:
            raise Busy("the demo ends")
        mine = sum(j.visitor is visitor for j in self._jobs)
        here = sum(j.visitor.address == visitor.address for j in self._jobs)
        if mine >= self.limits.jobs:
            raise Busy(f"you have {mine} jobs waiting; let one of them end first")
        if len(self._jobs) >= self.limits.waiting or here >= max(1, self.limits.waiting // 2):
            raise Busy(f"the demo is busy, {len(self._jobs)} jobs wait; try again in a minute")
        job = Job(self, visitor, Budget(self.limits.job_seconds))
        self._jobs.append(job)
        try:
            yield job
        finally:
            job.ended = job.budget.stopped = True
            if not job.working:
                self._leave(job)

    def offer(self) -> None:
        """Give the turn to the next job, if nobody has it or does anything with it."""
        holder = self._holder
        if holder is not None and not holder.working:
            if time.monotonic() - holder.last > self.limits.slice_seconds:
                self._release(holder)
        if self._holder is None and self._jobs:
            chosen = min(self._first(), key=self._order)
            self._holder = chosen
            chosen.sliced, chosen.last = 0.0, time.monotonic()
            for name in _names(chosen):
                self._served.pop(name, None)  # so that the dict is in order of service
                self._served[name] = next(self._clock)
            while len(self._served) > 4 * self.limits.visitors:
                del self._served[next(iter(self._served))]
            chosen.granted.set()

    def stepped(self, job: Job) -> None:
        """A step of a job has ended."""
        job.working = False
        job.sliced += time.monotonic() - job.last
        job.last = time.monotonic()
        if job.ended:
            self._leave(job)
        elif job.sliced > self.limits.slice_seconds and len(self._first()) > 1:
            self._release(job)
            self.offer()

    def ahead(self, job: Job) -> int:
        """Jobs that go before one as things stand."""
        own = [j for j in self._jobs if j.visitor is job.visitor]
        others = [j for j in self._first() if j.visitor is not job.visitor]
        before = sum(self._order(j) < self._order(job) or j is self._holder for j in others)
        return own.index(job) + before

    def _first(self) -> list[Job]:
        """The first job of each visitor."""
        return list({j.visitor.name: j for j in reversed(self._jobs)}.values())

    def _order(self, job: Job) -> tuple[int, int, int]:
        address, name = (self._served.get(k, 0) for k in _names(job))
        return address, name, self._jobs.index(job)

    def _release(self, job: Job) -> None:
        job.granted.clear()
        self._holder = None

    def _leave(self, job: Job) -> None:
        self._jobs.remove(job)
        if self._holder is job:
            self._release(job)
        self.offer()


def _names(job: Job) -> tuple[str, str]:
    return f"address {job.visitor.address}", f"visitor {job.visitor.name}"
