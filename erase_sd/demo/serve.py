"""Serve the page: where, to whom, and what a request may carry."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erase_sd.demo.page import House

UPLOAD_BYTES = 2_000_000
# The browser itself refuses whatever is not from here.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; object-src 'none'; "
    "worker-src 'self' blob:; base-uri 'self'; form-action 'self'"
)


class Guard:
    """ASGI middleware: uploads are small and named `.safetensors`; every page says what it may load.

    Args:
        app: What it guards.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
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

        path = scope["path"].rstrip("/")
        if scope["method"] == "POST" and path.endswith("/upload"):
            body = b""
            more = True
            while more and len(body) <= UPLOAD_BYTES:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            names = re.findall(rb'filename\*?="?([^"\r\n]*)', body)
            if len(body) > UPLOAD_BYTES:
                await _refuse(guarded, 413, f"at most {UPLOAD_BYTES // 1_000_000} MB")
            elif not names or not all(n.lower().endswith(b".safetensors") for n in names):
                await _refuse(guarded, 415, "only .safetensors files")
            else:
                parts = [{"type": "http.request", "body": body, "more_body": False}]

                async def replay() -> Any:
                    return parts.pop() if parts else await receive()

                await self.app(scope, replay, guarded)
            return
        await self.app(scope, receive, guarded)


async def _refuse(send: Any, status: int, text: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


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
    block: bool = True,
    root_path: str | None = None,
) -> str:
    """Start the demo.

    Args:
        house: Models, limits, folder.
        host: Address to listen on.
        port: Port; None takes the first free one from 7860.
        auth: User and password that everybody needs, or None.
        share: Make a public link through Gradio's servers.
        queue: Requests that may wait; one more is told that the demo is busy.
        block: Serve until interrupted; otherwise return at once.
        root_path: Path under which a proxy publishes it.

    Returns:
        The local address.
    """
    # Uploads and results lie in the house's own folder, readable by this user alone, gone at the end.
    os.environ["GRADIO_TEMP_DIR"] = str(house.folder / "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from starlette.middleware import Middleware

    from erase_sd.demo.page import CSS, build

    page = build(house)
    page.queue(api_open=False, max_size=queue, default_concurrency_limit=house.jobs)
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="rose", neutral_hue="slate", font=fonts, font_mono=("ui-monospace", "monospace")
    )
    try:
        _, address, public = page.launch(
            server_name=host, server_port=port, auth=auth, share=share, prevent_thread_lock=True, show_error=False,
            quiet=True, footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
            mcp_server=False, max_file_size=UPLOAD_BYTES, theme=theme, css=CSS, root_path=root_path,
            app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None, "openapi_url": None},
        )  # fmt: skip
        print(f"the demo is at {public or address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        if block:
            page.block_thread()
    finally:
        if block:
            page.close(verbose=False)
            shutil.rmtree(house.folder, ignore_errors=True)
    return address
