"""Connections that end: slow and half-open clients cannot fill the server."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from erase_sd.demo.limits import Limits


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with an end to waiting.

    A header has to arrive in time, an answer has to be read, and there are so many connections and
    no more: a new one takes the place of the one that has been waiting for its header longest.

    Attributes:
        limits: How long, and how many.
    """

    limits = Limits()
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or end it at once."""
        super().connection_made(transport)
        self._await_header()
        address = self.client[0] if self.client else ""
        others = [c for c in self.connections if isinstance(c, BoundedProtocol) and c is not self]
        if not _local(address):
            here = sum(c.client is not None and c.client[0] == address for c in others)
            if here >= self.limits.connections_per_address:
                self._end()
                return
        if len(others) >= self.limits.connections:
            waiting = [c for c in others if c._late is not None]
            victim = min(waiting, key=lambda c: c._late.when() if c._late else 0.0, default=self)
            victim._end()

    def data_received(self, data: bytes) -> None:
        """Read on; the time for a header runs on while a part of it is missing."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_header()
        else:
            self._stop_late()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_late()
        self._stop_stalled()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.limits.stall_seconds, self._end)

    def resume_writing(self) -> None:
        """It has read some."""
        super().resume_writing()
        self._stop_stalled()

    def _await_header(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.limits.header_seconds, self._end)

    def _stop_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _stop_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _end(self) -> None:
        self.transport.abort()


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with these limits; uvicorn takes a class."""
    return type("Protocol", (BoundedProtocol,), {"limits": limits})


def _local(address: str) -> bool:
    """Whether a connection comes from this machine, for instance from a proxy for many clients."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
