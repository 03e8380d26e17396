"""Serve the page: where, to whom, and what a request may carry."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erase_sd.demo.house import House

SESSIONS = 500  # visitors whose work is remembered
UPLOAD_BYTES = 2_000_000
BODY_BYTES = 200_000  # of any other request
FOLDER_BYTES = 2_000_000_000  # of all that visitors have uploaded and made
# What the page asks for; Gradio has more routes, and none of them is needed here.
READ = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|login|logout|login_check|(static|assets|svelte)/.*|"
    r"gradio_api/(startup-events|app_id|queue/data|upload_progress|heartbeat/[\w-]+|file=.*))?"
)
WRITE = re.compile(r"/(login|gradio_api/(upload|cancel|reset|queue/join))")
# The browser itself refuses whatever is not from here.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; object-src 'none'; "
    "worker-src 'self' blob:; base-uri 'self'; form-action 'self'"
)


class Guard:
    """ASGI middleware: what the page needs and nothing else, in small requests, from its own folder.

    Args:
        app: What it guards.
        folder: The only folder whose files are served and whose size is bounded.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        self.app = app
        self.folder = folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        path = scope["path"].rstrip("/") or "/"
        reads = scope["method"] in ("GET", "HEAD")
        if not (READ if reads else WRITE).fullmatch(path) or scope["method"] not in ("GET", "HEAD", "POST"):
            await _answer(guarded, 404, "there is nothing here")
            return
        if reads:
            file = path.partition("/gradio_api/file=")[2]
            if file and not (file.startswith(f"{self.folder}/") and ".." not in file.split("/")):
                await _answer(guarded, 403, "that file is not of this page")
                return
            await self.app(scope, receive, guarded)
            return
        uploading = path.endswith("/upload")
        limit = UPLOAD_BYTES if uploading else BODY_BYTES
        body, more = b"", True
        while more and len(body) <= limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > limit:
            await _answer(guarded, 413, f"at most {limit / 1e6:g} MB")
        elif uploading and not await _is_erasure_upload(scope, body):
            await _answer(guarded, 415, "one .safetensors file")
        elif uploading and _size(self.folder) > FOLDER_BYTES:
            await _answer(guarded, 507, "the demo's disk is full; try again later")
        else:
            parts = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Any:
                return parts.pop() if parts else await receive()

            await self.app(scope, replay, guarded)


async def _is_erasure_upload(scope: Any, body: bytes) -> bool:
    """Whether a form holds one file, in the field Gradio reads, named as erasure files are."""
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(Headers(scope=scope), stream(), max_files=1, max_fields=4).parse()
    except (MultiPartException, KeyError, ValueError):
        return False
    items = form.multi_items()
    await form.close()
    return (
        [key for key, _ in items] == ["files"]
        and isinstance(items[0][1], UploadFile)
        and (items[0][1].filename or "").lower().endswith(".safetensors")
    )


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


async def _answer(send: Any, status: int, text: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


async def _no_download(url: str, *_: Any, **__: Any) -> str:
    """Stands in for Gradio's own: a visitor may not make the server fetch an address."""
    raise ValueError(f"this page fetches nothing: {url[:80]}")


def credentials() -> tuple[str, str]:
    """User and password from `ERASE_SD_AUTH`.

    Raises:
        ValueError: If it is not set to `user:password`.
    """
    user, colon, password = os.environ.get("ERASE_SD_AUTH", "").partition(":")
    if not user or not colon or not password:
        raise ValueError("--auth reads the environment: set ERASE_SD_AUTH=user:password")
    return user, password


def few_arenas() -> None:
    """Let glibc keep two heaps instead of one for every thread that ever allocated: half the server's memory."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").mallopt(-8, 2)  # M_ARENA_MAX


def serve(
    house: House,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    share: bool = False,
    queue: int = 64,
) -> None:
    """Serve the demo until interrupted.

    Args:
        house: Models, limits, folder.
        host: Address to listen on.
        port: Port; None takes the first free one from 7860.
        auth: User and password that everybody needs, or None.
        share: Make a public link through Gradio's servers.
        queue: Requests that may wait; one more is told that the demo is busy.
    """
    import gradio as gr
    from gradio import processing_utils
    from starlette.middleware import Middleware

    from erase_sd.demo.page import CSS, build

    processing_utils.async_ssrf_protected_download = _no_download
    page = build(house)
    page.queue(api_open=False, max_size=queue, default_concurrency_limit=1)
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="rose", neutral_hue="slate", font=fonts, font_mono=("ui-monospace", "monospace")
    )
    guard = Middleware(Guard, folder=house.folder)
    try:
        _, address, public = page.launch(
            server_name=host, server_port=port, auth=auth, share=share, prevent_thread_lock=True, show_error=False,
            quiet=True, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
            mcp_server=False, max_file_size=UPLOAD_BYTES, theme=theme, css=CSS,
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
        )  # fmt: skip
        print(f"the demo is at {public or address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        page.block_thread()
    finally:
        page.close(verbose=False)
