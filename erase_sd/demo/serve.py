"""Serve the page: where, under which names, to whom."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import platform
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import fastapi
import gradio as gr
import uvicorn

from erase_sd.demo.connections import bounded
from erase_sd.demo.ending import GRACE, EndingServer, end_process_soon
from erase_sd.demo.guard import Gate, Guard
from erase_sd.demo.layout import CSS, THEME, build
from erase_sd.demo.messages import Forms
from erase_sd.demo.origin import LOOPBACK, Origins, host_name
from erase_sd.demo.password import Password
from erase_sd.demo.server import Server

_PORTS = range(7860, 7960)
_SWEEP = 60.0  # seconds between two looks for what visits have left
_ANYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - names of "every address", compared only


@dataclass(frozen=True)
class Address:
    """Where the page is, and who gets in.

    Attributes:
        host: Address to listen on.
        port: Port; None takes the first free one from 7860.
        allowed_hosts: Names by which visitors reach it, besides this machine's for itself.
        password: What everybody needs, or None.

    Raises:
        ValueError: If others could reach it, but by no name.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    allowed_hosts: tuple[str, ...] = ()
    password: Password | None = None

    def __post_init__(self) -> None:
        if host_name(self.host) in _ANYWHERE and not self.allowed_hosts:
            raise ValueError(
                f"--host {self.host} needs --allowed-host NAME: "
                "what visitors have in their address bar, without port"
            )
        _ = self.origins

    @property
    def origins(self) -> Origins:
        """Names under which the page may be asked for."""
        own = [] if host_name(self.host) in _ANYWHERE else [self.host]
        return Origins([*own, *self.allowed_hosts])

    @property
    def public(self) -> bool:
        """Whether others than this machine reach it."""
        return bool(self.allowed_hosts) or host_name(self.host) not in LOOPBACK

    def bind(self) -> socket.socket:
        """Take the port.

        Raises:
            ValueError: If it, or every one, is in use.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        for port in _PORTS if self.port is None else [self.port]:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self.host.strip("[]"), port))
                listener.listen()  # who comes before the server runs waits for it
            except OSError as error:
                listener.close()
                reason = error
                continue
            return listener
        raise ValueError(f"cannot listen on {self.host}: {reason.strerror}")


def make_app(server: Server, address: Address, port: int) -> Guard:
    """The page with what guards it, as an ASGI application.

    Args:
        server: What visitors share.
        address: Names and password.
        port: Where it will be served; cookies of two demos on one machine differ by it.
    """
    page = build(server)
    # Who is next is decided by `server.turns`; Gradio starts whatever comes.
    page.max_threads = server.limits.waiting + 16
    page.state_session_capacity = server.limits.visitors
    page.queue(api_open=False, max_size=2 * server.limits.waiting, default_concurrency_limit=None)

    @contextlib.asynccontextmanager
    async def swept(_: fastapi.FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_sweep(server))
        try:
            yield
        finally:
            task.cancel()

    shell = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=swept)
    gr.mount_gradio_app(
        shell,
        page,
        path="/",
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=THEME,
        css=CSS,
    )
    inputs = {d["id"]: len(d["inputs"]) for d in page.config["dependencies"] if d.get("backend_fn")}
    gate = Gate(address.origins, f"erase-sd-{port}", address.password)
    return Guard(shell, server, gate, Forms(inputs))


def prepare(server: Server, address: Address, listener: socket.socket) -> EndingServer:
    """All that serves the page on a port that is taken; nothing runs yet."""

    async def made() -> Guard:
        return make_app(server, address, listener.getsockname()[1])

    config = uvicorn.Config(
        # In a loop: where none runs, Gradio makes one for each of its locks and leaves it open.
        asyncio.run(made()),
        http=bounded(server.limits),
        ws="none",
        loop="asyncio",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE,
    )
    return EndingServer(config, server.turns)


def serve(server: Server, address: Address) -> None:
    """Serve the demo until interrupted; soon after that this process is over."""
    few_arenas()
    with address.bind() as listener:
        ready = prepare(server, address, listener)
        host = "127.0.0.1" if host_name(address.host) in _ANYWHERE else host_name(address.host)
        at = f"http://{host}:{listener.getsockname()[1]}/"
        print(f"the demo is at {at} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        try:
            ready.run(sockets=[listener])
        finally:
            end_process_soon()


def few_arenas() -> None:
    """Let glibc keep two heaps, not one for every thread: half the server's memory."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").mallopt(-8, 2)  # M_ARENA_MAX


async def _sweep(server: Server) -> None:
    while True:
        await asyncio.sleep(_SWEEP)
        server.visitors.sweep()
