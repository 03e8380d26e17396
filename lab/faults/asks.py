"""Requests to the page by other sites, other names, strangers and clients that speak badly."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lab.faults.bench import Bench, Outcome, litter

JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
CHANGING = (JOIN, UPLOAD, "/gradio_api/cancel", "/gradio_api/reset")
EVIL = ("null", "http://evil.example", "http://127.0.0.1",
    "http://127.0.0.1:{port}.evil.example", "file://", "", "http://localhost:{port}",
    "http://127.0.0.1:{port}/", "http://[::1]:{port}", "https://evil.example",
    "http://127.0.0.1:{port}@evil.example",
    "http://127.0.0.1.:{port}")  # fmt: skip
HOSTS = ("evil.example", "127.0.0.1.evil.example:{port}", "", "127.0.0.1@evil",
    "0.0.0.0:{port}", "127.1:{port}", "x" * 500, "evil.example:{port}", "2130706433",
    "\u0131.example")  # fmt: skip
FILES = ("/etc/passwd", "{work}/base.safetensors", "../../../../etc/passwd",
    "%2e%2e/%2e%2e/etc/passwd", "http://1.1.1.1/x", "/proc/self/environ", "{temp}",
    "{temp}/x", "//etc/passwd", "/dev/zero", "\\\\x\\y", "%00", "", ".", "~/.ssh")  # fmt: skip
ROUTES = ("/gradio_api/info", "/gradio_api/file=", "/docs", "/openapi.json",
    "/login", "/monitoring", "/gradio_api/proxy=", "/gradio_api/component_server",
    "/gradio_api/call/erase", "/static/../../x", "/assets/%2e%2e/x", "/.git/config",
    "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/a",
    "/gradio_api/stream/a/b/c")  # fmt: skip
BODIES = (b"", b"{", b"[]", b"null", b"[" * 50_000, b'{"a":' * 5_000, b"\xff" * 99,
    b"1e999", b'{"fn_index": 1e99}',
    b'{"fn_index": 0, "data": [], "session_hash": "a"}', b'{"data": "\\ud800"}',
    b"x" * 300_000,
    b'{"fn_index": 3, "data": [{"path": "/etc/passwd"}], "session_hash": "../a"}')  # fmt: skip
RAW = (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 99 + b"\r\n\r\n",
    b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/9.9\r\nHost: 127.0.0.1:{port}\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\n",
    b"CONNECT 1.1.1.1:80 HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n",
    b"GET http://1.1.1.1/ HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n")  # fmt: skip
PATIENCE = 20.0  # seconds; a header that does not end is given 10 by the page
HUNG = 599  # what is told for a status where the answer did not end


@dataclass
class Page:
    """A running page, and one visitor's cookie.

    Attributes:
        port: Where it listens.
        process: It.
        errors: File that its stderr goes to.
        cookie: The visitor's.
        outcomes: How the trials so far ended.
    """

    port: int
    process: subprocess.Popen[bytes]
    errors: Path
    cookie: str = ""
    outcomes: list[Outcome] = field(default_factory=list)

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        """Status and body; 0 if closed without an answer, HUNG if the answer did not end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        end = time.monotonic() + PATIENCE
        told = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(body)), **headers}
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for key, value in told.items():
                connection.putheader(key, value.encode("utf-8"))
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(body)
            answer = connection.getresponse()
            if "set-cookie" in answer.headers and not self.cookie:
                self.cookie = answer.headers["set-cookie"].partition(";")[0]
            body = b""
            while more := answer.read1(1_000_000):
                body += more
                if time.monotonic() > end:
                    return HUNG, body
            return answer.status, body
        except TimeoutError:
            return HUNG, b""
        except (http.client.HTTPException, ConnectionError, ValueError):
            return 0, b""
        finally:
            connection.close()

    def raw(self, text: bytes) -> int:
        """Status of an answer to bytes exactly as they are; 0 if there is none, HUNG if no end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as s:
            try:
                s.sendall(text.replace(b"{port}", str(self.port).encode()))
                s.shutdown(socket.SHUT_WR)
                head = s.recv(64).split(b" ")
                return int(head[1]) if len(head) > 1 and head[1].isdigit() else 0
            except TimeoutError:
                return HUNG
            except ConnectionError:
                return 0


@contextlib.contextmanager
def page_of(bench: Bench) -> Iterator[Page]:
    """The page in a process of its own; what it left behind is looked at when it has ended."""
    temp = bench.work / "temp"
    temp.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    handle, name = tempfile.mkstemp(dir=bench.work, suffix=".err")
    command = [sys.executable, "-m", "erase_sd.cli.main", "demo", "--port", str(port)]
    process = subprocess.Popen(command, stderr=handle, env=os.environ | {"TMPDIR": str(temp)})
    os.close(handle)
    page = Page(port, process, Path(name))
    try:
        while "the demo is at" not in page.errors.read_text():
            if process.poll() is not None:
                raise RuntimeError(page.errors.read_text()[-500:])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        page.ask("GET", "/", {})
        yield page
        alive = page.ask("GET", "/", {})[0] == 200
    finally:
        process.terminate()
        process.wait(60)
    said = page.errors.read_text(errors="replace")
    page.errors.unlink()
    # onnxruntime, which NudeNet brings, leaves a note of its own when it is imported.
    left = litter(temp) or [p.name for p in temp.iterdir() if p.name != ".ses"]
    wrong = "" if alive else "GONE " + said[-300:]
    wrong = wrong or ("TRACEBACK " + said[-600:] if "Traceback" in said else "")
    wrong = wrong or (f"LEFT BEHIND {left}" if left else "")
    page.outcomes.append(("the page afterwards", wrong or "alive, silent, nothing left"))


def asked(bench: Bench, page: Page, rng: np.random.Generator) -> Outcome:
    """One request."""

    def one(values: tuple[str, ...]) -> str:
        value = values[int(rng.integers(len(values)))]
        return value.format(port=page.port, work=bench.work, temp=bench.work / "temp")

    own = {"Origin": f"http://127.0.0.1:{page.port}", "Cookie": page.cookie}
    own["Content-Type"] = "application/json"
    job = json.dumps({"fn_index": 1, "data": [], "session_hash": "tab"}).encode()
    kind = int(rng.integers(6))
    if kind == 0:
        method = "OPTIONS" if rng.random() < 0.2 else "POST"
        status, _ = page.ask(method, one(CHANGING), own | {"Origin": one(EVIL)}, job)
        return "another site", "refused" if status in (403, 404) else f"STATUS {status}"
    if kind == 1:
        host = one(HOSTS)
        told = own | {"Host": host, "Origin": f"http://{host}"}
        status, _ = page.ask("GET", one(("/", "/config", *ROUTES)), told)
        return (
            "another name",
            "refused" if 400 <= status < 500 or not status else f"STATUS {status}",
        )
    if kind == 2:
        cookie = one(
            ("", f"erase-sd-{page.port}=x", f"erase-sd-{page.port}=a.b", "a=b", page.cookie[:-1])
        )
        path = one(
            (*CHANGING, "/gradio_api/queue/data?session_hash=tab", "/gradio_api/heartbeat/tab")
        )
        method = "POST" if path in CHANGING else "GET"
        status, _ = page.ask(
            method, path, own | {"Cookie": cookie}, job if method == "POST" else b""
        )
        return "a stranger", "refused" if status in (403, 404) else f"STATUS {status} {path}"
    if kind == 3:
        path = "/gradio_api/file=" + one(FILES) if rng.random() < 0.6 else one(ROUTES)
        own_tab = (
            "queue" in path or "heartbeat" in path
        )  # streams without end to whoever they are of
        told = {} if own_tab else {"Cookie": page.cookie}
        status, body = page.ask("GET", path.replace(" ", "%20"), told)
        wrong = status in (0, 200) or status >= 500 or b"root:" in body
        return "a path", f"STATUS {status} {path}" if wrong else "refused"
    if kind == 4:
        status, body = page.ask("POST", one(CHANGING), own, BODIES[int(rng.integers(len(BODIES)))])
        wrong = status >= 500 and status != 503 or b"Traceback" in body
        return "a malformed message", f"STATUS {status}" if wrong else "refused or taken"
    status = page.raw(RAW[int(rng.integers(len(RAW)))])
    return "bad HTTP", f"STATUS {status}" if status >= 500 else "refused or closed"


def requests(bench: Bench, rng: np.random.Generator, trials: int) -> list[Outcome]:
    """So many requests to one page."""
    with page_of(bench) as page:
        page.outcomes += [asked(bench, page, rng) for _ in range(trials)]
    return page.outcomes
