"""Requests and answers as ASGI has them, made smaller and stricter."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The browser itself refuses whatever is not from here, and shows the page in no other.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; object-src 'none'; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class Refused(Exception):
    """An answer instead of what was asked for.

    Attributes:
        status: HTTP status.
        text: Why, in one line.
        headers: Further headers.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})


async def collected(receive: Receive, limit: int) -> bytes:
    """A request's whole body.

    Raises:
        Refused: If it is longer than `limit` bytes, or breaks off.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request broke off")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise Refused(413, f"at most {limit / 1e6:g} MB")
        more = message.get("more_body", False)
    return b"".join(parts)


def rewritten(scope: Scope, body: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """A request with another body."""
    changed = (b"content-length", b"content-type", b"accept-encoding", b"transfer-encoding")
    headers = [(k, v) for k, v in scope["headers"] if k not in changed]
    length = str(len(body)).encode()
    headers += [(b"content-type", b"application/json"), (b"content-length", length)]
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return parts.pop() if parts else await receive()

    return {**scope, "headers": headers}, replay


async def uploaded(scope: Scope, body: bytes) -> tuple[str, bytes]:
    """Name and content of the one file in a form."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(Headers(scope=scope), stream(), max_files=1, max_fields=4)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refused(415, "one .safetensors file") from error
    try:
        items = form.multi_items()
        file = items[0][1] if [key for key, _ in items] == ["files"] else None
        if not isinstance(file, UploadFile):
            raise Refused(415, "one .safetensors file")
        name = re.sub(r"[^\w.-]+", "-", (file.filename or "").rpartition("/")[2], flags=re.ASCII)
        if not name.lower().endswith(".safetensors"):
            raise Refused(415, "one .safetensors file")
        return f"{name[: -len('.safetensors')][:60] or 'file'}.safetensors", await file.read()
    finally:
        await form.close()


def hardened(send: Send) -> Send:
    """Answers that a browser handles as strictly as it can, and that no other site may read."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = message.get("headers", [])
            message["headers"] = [
                *((k, v) for k, v in kept if not k.lower().startswith(b"access-control-")),
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"same-origin"),
                (b"cross-origin-resource-policy", b"same-origin"),
                (b"cross-origin-opener-policy", b"same-origin"),
            ]
        await send(message)

    return hardened


async def answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Send a whole answer."""
    told = {"content-type": "text/plain", "content-length": str(len(body)), **headers}
    raw = [(k.encode(), v.encode()) for k, v in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
