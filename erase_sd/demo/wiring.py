"""How Gradio runs a handler: whose it is, when its turn comes, how it tells what was wrong."""

from __future__ import annotations

import functools
import html
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, TypeVar

import gradio as gr

from erase_sd.demo.handlers import Update
from erase_sd.demo.server import Server
from erase_sd.demo.visitor import Visitor

T = TypeVar("T")

_EXPECTED = (ValueError, OSError, MemoryError)
_WAIT = 2.0  # seconds between two words to a visitor who waits for the model


def visitor_of(request: gr.Request) -> Visitor:
    """Who clicked, as the guard found out."""
    visitor = request.request.scope.get("visitor") if request.request else None
    if not isinstance(visitor, Visitor):
        raise RuntimeError("a request has come past the guard")
    return visitor


def _told(error: Exception) -> gr.Error:
    """One line for the visitor; anything unexpected goes to the operator's log alone."""
    # An operating system's message has paths of this machine in it.
    text = (error.strerror or "the disk failed") if isinstance(error, OSError) else str(error)
    line = html.escape(" ".join(text.split())) or "out of memory"
    return gr.Error(line, title="That does not work", print_exception=False)


def quick(function: Callable[..., T]) -> Callable[..., T]:
    """A handler that takes no time; what it refuses is told in one line."""

    @functools.wraps(function)
    def once(*args: Any) -> T:
        try:
            return function(*args)
        except _EXPECTED as error:
            raise _told(error) from error

    return once


def heavy(
    server: Server,
    handler: Callable[..., Generator[T, None, None]],
    parse: Callable[..., tuple[Any, ...]],
    show: Callable[[T | None], dict[Any, Any]],
) -> Callable[..., AsyncIterator[dict[Any, Any]]]:
    """A handler that waits for the model, as Gradio runs it.

    Args:
        server: What visitors share.
        handler: Takes the server, the session and what `parse` makes; yields updates.
        parse: Checks what the browser sent.
        show: What an update changes on the page; None is no news.
    """

    async def run(
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio knows it
        *raw: Any,
    ) -> AsyncIterator[dict[Any, Any]]:
        visitor, tab = visitor_of(request), str(request.session_hash)
        try:
            asked = parse(*raw)
            with server.turns.job(visitor) as job:
                while not await job.wait(_WAIT):
                    progress(0, desc=f"waiting for {job.ahead()} before you")
                    yield show(None)
                # As the session is now: the jobs of a visitor follow one another.
                steps = handler(server, visitor.session(tab, server.models[0]), *asked)
                try:
                    while (update := await job.step(lambda: next(steps, None))) is not None:
                        _note(update, visitor, tab, progress)
                        yield show(update)
                finally:
                    if not job.working:  # else it is stopped at its next pass through a network
                        steps.close()
        except _EXPECTED as error:
            raise _told(error) from error

    return run


def _note(update: object, visitor: Visitor, tab: str, progress: gr.Progress) -> None:
    if isinstance(update, Update):
        if update.session is not None:
            visitor.keep(tab, update.session)
        now = update.progress
        if now is not None:
            progress((now.done, now.total), desc=now.told, unit="pictures")
