"""How the server ends: what has begun is given a moment, then everything is cut."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading

import uvicorn

from erase_sd.demo.turns import Turns

GRACE = 2  # seconds that answers which are being sent have to come to their end
CUT = 5.0  # seconds after that until this process ends, whatever still runs in it
_ROUNDS = 5

logger = logging.getLogger("erase_sd")


class EndingServer(uvicorn.Server):
    """uvicorn's server, which ends in bounded time once it was told to.

    uvicorn waits without a limit for the application's own end, and asyncio for every task that it
    has cancelled and every thread that it has started. A task may lose its cancellation (before
    Python 3.12 `asyncio.wait_for` returns what came at the same moment instead), and nobody tells
    it again.

    Attributes:
        turns: Whose jobs are stopped.
    """

    def __init__(self, config: uvicorn.Config, turns: Turns) -> None:
        super().__init__(config)
        self.turns = turns

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end."""
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self.serve(sockets=sockets))
        finally:
            cut(loop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop every job, give answers their moment, then end the connections that are left."""
        self.turns.stop()
        orderly = asyncio.create_task(super().shutdown(sockets))
        await asyncio.wait([orderly], timeout=GRACE + 1)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def cut(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what runs in a loop, more than once if need be, and close it; threads are left."""
    try:
        for _ in range(_ROUNDS):
            tasks = asyncio.all_tasks(loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks, timeout=0.5))
        for task in asyncio.all_tasks(loop):
            logger.warning("the demo ends although a task does not: %s", task.get_name())
        ending = loop.create_task(loop.shutdown_asyncgens())
        loop.run_until_complete(asyncio.wait([ending], timeout=1))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def end_process_soon(status: int = 0) -> None:
    """End this process in a while, if it has not ended by itself: a thread may not let it."""
    timer = threading.Timer(CUT, os._exit, [status])
    timer.daemon = True
    timer.start()
