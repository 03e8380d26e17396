"""What stands between the world and Gradio: the page's own routes, for the page alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode

from h11 import LocalProtocolError
from starlette.datastructures import Headers
from starlette.responses import FileResponse

from erase_sd.demo import messages
from erase_sd.demo.asgi import (
    App,
    Message,
    Receive,
    Refused,
    Scope,
    Send,
    answer,
    collected,
    hardened,
    rewritten,
    uploaded,
)
from erase_sd.demo.messages import Forms
from erase_sd.demo.origin import Origins, Stranger
from erase_sd.demo.password import Password
from erase_sd.demo.server import Server
from erase_sd.demo.visitor import Visitor

# What the page asks for; Gradio has more routes, and none of them is needed here.
PAGE = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(static|assets|svelte)/.*|"
    r"gradio_api/(startup-events|app_id))?"
)
FILE, HEARTBEAT, LISTEN = "/gradio_api/file=", "/gradio_api/heartbeat/", "/gradio_api/queue/data"
UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
CANCEL, RESET = "/gradio_api/cancel", "/gradio_api/reset"
# Shown to who comes by a link of another site: the browser keeps our cookie back until the next
# step, and without it we would take an old visitor for a new one.
DOORSTEP = b'<!doctype html><meta http-equiv="refresh" content="0;url=/"><a href="/">erase-sd</a>'


@dataclass(frozen=True)
class Gate:
    """Who is let in.

    Attributes:
        origins: Names under which the page may be asked for.
        cookie: Name of the visitor's cookie.
        password: What everybody needs, or None.
    """

    origins: Origins
    cookie: str
    password: Password | None = None


class Guard:
    """ASGI middleware: nothing reaches Gradio that the page itself would not send.

    Args:
        app: What it guards.
        server: Visitors and limits.
        gate: Who is let in.
        forms: What the page can ask for.
    """

    def __init__(self, app: App, server: Server, gate: Gate, forms: Forms) -> None:
        self.app = app
        self.server = server
        self.gate = gate
        self.forms = forms
        self._receiving = 0  # bytes of bodies that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            await self._route(scope, receive, hardened(send))
        except Refused as refused:
            # Closed, for who is refused may go on sending what nobody reads.
            headers = {**refused.headers, "connection": "close"}
            # Of a message that breaks off or breaks HTTP, the server itself has said so by now.
            with contextlib.suppress(LocalProtocolError):
                await answer(hardened(send), refused.status, refused.text.encode(), headers)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].rstrip("/") or "/"
        headers = Headers(scope=scope)
        try:
            self.gate.origins.check(scope["headers"], changes=method not in ("GET", "HEAD"))
        except Stranger as stranger:
            raise Refused(403, str(stranger)) from stranger
        address = (scope.get("client") or ("", 0))[0]
        visitor = self.server.visitors.find(self._ticket(headers), address)
        self._password(headers, visitor, address)
        scope["visitor"] = visitor
        if method in ("GET", "HEAD"):
            if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                raise Refused(400, "expected no body")
            await self._read(scope, path, receive, send)
            return
        if method != "POST" or path not in (UPLOAD, JOIN, CANCEL, RESET):
            raise Refused(404, "there is nothing here")
        if visitor is None:
            raise Refused(403, "the page is too old; reload it")
        limits = self.server.limits
        body = await self._body(
            headers, receive, limits.upload_bytes if path == UPLOAD else limits.body_bytes
        )
        try:
            await self._write(scope, path, visitor, body, receive, send)
        except PermissionError as error:
            raise Refused(403, str(error)) from error
        except ValueError as error:
            raise Refused(422, str(error)) from error

    async def _read(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        visitor: Visitor | None = scope["visitor"]
        if path == "/":
            if visitor is None:
                if Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site"):
                    await answer(send, 200, DOORSTEP, {"content-type": "text/html"})
                    return
                send = self._with_cookie(scope, send)
            await self.app(scope, receive, send)
        elif PAGE.fullmatch(path):
            await self.app(scope, receive, send)
        elif visitor is None:
            raise Refused(403, "the page is too old; reload it")
        elif path.startswith(FILE):
            await self._file(scope, visitor, receive, send)
        elif path.startswith(HEARTBEAT) or path == LISTEN:
            await self._stream(scope, path, visitor, receive, send)
        else:
            raise Refused(404, "there is nothing here")

    async def _file(self, scope: Scope, visitor: Visitor, receive: Receive, send: Send) -> None:
        """A file of the visitor; of others' nothing is told, not even whether they are there."""
        path = Path(unquote(scope["path"]).partition("file=")[2])
        if "\0" in str(path) or not visitor.owns(path) or not path.is_file():
            raise Refused(403, "that file is not of this page")
        headers = {"cache-control": "private, no-store"}
        name = None if path.suffix == ".png" else path.name  # a name makes it a download
        await FileResponse(path, filename=name, headers=headers)(scope, receive, send)

    async def _stream(
        self, scope: Scope, path: str, visitor: Visitor, receive: Receive, send: Send
    ) -> None:
        """An answer without an end, under the secret name of the visitor's page."""
        if path == LISTEN:
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])
            names = asked if len(asked) == 1 else [""]
        else:
            names = [path.removeprefix(HEARTBEAT)]
        try:
            tab = messages.tab(names[0], visitor, self.server.visitors)
        except ValueError as error:
            raise Refused(422, str(error)) from error
        if visitor.streams.total() >= self.server.limits.streams:
            raise Refused(429, "too many pages are open", {"retry-after": "30"})
        if path == LISTEN:
            scope = {**scope, "query_string": urlencode({"session_hash": tab}).encode()}
        else:
            scope = {**scope, "path": HEARTBEAT + tab, "raw_path": (HEARTBEAT + tab).encode()}
        with visitor.streaming("listen" if path == LISTEN else "heartbeat", tab):
            await self.app(scope, receive, send)

    async def _write(
        self, scope: Scope, path: str, visitor: Visitor, body: bytes, receive: Receive, send: Send
    ) -> None:
        visitors = self.server.visitors
        if path == UPLOAD:
            name, content = await uploaded(scope, body)
            if visitors.size() > self.server.limits.folder_bytes:
                raise Refused(507, "the demo's disk is full; try again later")
            try:
                kept = visitor.upload(name, content)
            except ValueError as error:
                raise Refused(429, str(error), {"retry-after": "60"}) from error
            told = json.dumps([str(kept)]).encode()
            await answer(send, 200, told, {"content-type": "application/json"})
        elif path == JOIN:
            tab, body = messages.join(body, self.forms, visitor, visitors)
            if not visitor.may_ask(tab):
                raise Refused(429, "nobody listens to what was asked for", {"retry-after": "60"})
            await self.app(*rewritten(scope, body, receive), _noting(send, visitor))
        elif path == CANCEL:
            body = messages.cancel(body, visitor, visitors)
            await self.app(*rewritten(scope, body, receive), send)
        else:  # `reset` does nothing in Gradio any more; its page still says it
            told = b'{"success": true}'
            await answer(send, 200, told, {"content-type": "application/json"})

    async def _body(self, headers: Headers, receive: Receive, limit: int) -> bytes:
        """A request's body, of bounded size and in bounded time."""
        told = headers.get("content-length", "0")
        if not told.isdigit() or int(told) > limit:
            raise Refused(413, f"at most {limit / 1e6:g} MB")
        if self._receiving + limit > self.server.limits.bodies_bytes:
            raise Refused(503, "the demo is busy; try again", {"retry-after": "10"})
        self._receiving += limit
        try:
            seconds = self.server.limits.body_seconds
            return await asyncio.wait_for(collected(receive, limit), seconds)
        except asyncio.TimeoutError as error:
            raise Refused(408, "the request came too slowly") from error
        finally:
            self._receiving -= limit

    def _ticket(self, headers: Headers) -> str:
        """Our cookie's value, or "". Of several none is ours for certain."""
        pairs = [p.strip().partition("=") for c in headers.getlist("cookie") for p in c.split(";")]
        found = [value for name, _, value in pairs if name == self.gate.cookie]
        return found[0] if len(found) == 1 else ""

    def _with_cookie(self, scope: Scope, send: Send) -> Send:
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        value = f"{self.gate.cookie}={self.server.visitors.ticket()}"
        cookie = f"{value}; Path=/; HttpOnly; SameSite=Strict{secure}"

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"set-cookie", cookie.encode()),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        return with_cookie

    def _password(self, headers: Headers, visitor: Visitor | None, address: str) -> None:
        if self.gate.password is None:
            return
        known = visitor is not None and visitor.admitted
        given = headers.get("authorization", "")
        verdict = self.gate.password.check(given, address, known=known)
        if verdict.wait:
            wait = {"retry-after": str(math.ceil(verdict.wait))}
            raise Refused(429, "too many wrong passwords; wait", wait)
        if not verdict.admitted:
            ask = {"www-authenticate": 'Basic realm="erase-sd", charset="UTF-8"'}
            raise Refused(401, "a password is needed", ask)
        if visitor is not None:
            visitor.admitted = True


def _noting(send: Send, visitor: Visitor) -> Send:
    """Remember which job is the visitor's, from Gradio's answer."""
    status, parts = 0, []

    async def noting(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif status == 200:
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                event = messages.event_of(b"".join(parts))
                if event is not None:
                    visitor.events.append(event)
        await send(message)

    return noting
