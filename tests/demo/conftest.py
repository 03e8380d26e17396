"""A real server on loopback, and visitors who speak HTTP to it."""

import contextlib
import faulthandler
import http.client
import json
import os
import socket
import threading
import time

import pytest

pytest.importorskip("gradio")

from erase_sd.demo.limits import Limits
from erase_sd.demo.serve import Address, prepare
from erase_sd.demo.server import Server

GUARDED = {"content-type": "application/json"}


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server with the embedded model, which is loaded on first use."""
    return make_server(tmp_path_factory.mktemp("demo"), steps=3)


@pytest.fixture(scope="session")
def model(server):
    return server.model("emoji-sd")


@pytest.fixture
def session(server, tmp_path):
    from erase_sd.demo.visitor import Session

    return Session(tmp_path, "emoji-sd")


@pytest.fixture(scope="session")
def port(server):
    """Where the server with the embedded model listens."""
    with serving(server) as port:
        yield port


@pytest.fixture(scope="module")
def visitor(port):
    return Client(port)


def make_server(folder, **limits):
    return Server(("emoji-sd",), folder, limits=Limits(**limits))


@contextlib.contextmanager
def serving(server, **address):
    """Serve in a thread; gives the port."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(server.folder)
    with Address(port=free_port(), **address).bind() as listener:
        running = prepare(server, Address(**address), listener)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(60)
            if thread.is_alive():
                faulthandler.dump_traceback()
                pytest.fail("the server does not end; where its threads are is told above")
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def upload_body(content, name="mine.safetensors", field="files"):
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n"


class Client:
    """One browser: its cookie, its page's origin, the address it comes from."""

    def __init__(self, port, address="127.0.0.1", headers=None, enter=True):
        self.port, self.address = port, address
        self.host = f"127.0.0.1:{port}"
        self.headers = dict(headers or {})
        self.cookie = ""
        if enter:
            assert self.get("/")[0] == 200

    def send(self, method, path, body=None, headers=None):
        """Status, headers and body of an answer to a request exactly as written."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=60, source_address=(self.address, 0)
        )
        told = {"Host": self.host, **self.headers, **(headers or {})}
        if self.cookie and "Cookie" not in told:
            told["Cookie"] = self.cookie
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for key, value in told.items():
            if value is not None:
                connection.putheader(key, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        with contextlib.closing(connection):
            connection.endheaders()
            # A body that is too large is refused before all of it was sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(body or b"")
            answer = connection.getresponse()
            data = answer.read()
        given = answer.headers.get("set-cookie")
        if given:
            self.cookie = given.partition(";")[0]
        return answer.status, answer.headers, data

    def get(self, path, **headers):
        status, _, data = self.send("GET", path, headers=headers)
        return status, data

    def post(self, path, body, headers=None):
        """As the page itself would send it."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        own = {"Origin": f"http://{self.host}", "content-type": "application/json"}
        status, _, data = self.send("POST", path, body, {**own, **(headers or {})})
        return status, data

    def upload(self, content, name="mine.safetensors", field="files", headers=None):
        kind = {"content-type": "multipart/form-data; boundary=b"}
        body = upload_body(content, name, field)
        return self.post("/gradio_api/upload", body, {**kind, **(headers or {})})

    def function(self, name, event="click"):
        """Number of the function behind a component's event, and of the component."""
        config = json.loads(self.get("/config")[1])
        one = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == name)
        wanted = [one, event]
        found = [d for d in config["dependencies"] if wanted in [list(t) for t in d["targets"]]]
        return found[0]["id"], one

    def join(self, number, data, tab="tab", headers=None, **more):
        message = {"fn_index": number, "data": data, "session_hash": tab, **more}
        return self.post("/gradio_api/queue/join", message, headers)

    def outcome(self, tab="tab", path="/gradio_api/queue/data?session_hash="):
        """The last message of the queue to a page."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=120, source_address=(self.address, 0)
        )
        told = {"Host": self.host, "Cookie": self.cookie, **self.headers}
        connection.request("GET", f"{path}{tab}", headers=told)
        with contextlib.closing(connection):
            for line in connection.getresponse():
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    if message["msg"] in ("process_completed", "unexpected_error", "close_stream"):
                        return message
        return {"msg": "nothing"}

    def run(self, name, data, tab="tab", event="click"):
        """Do something on the page, and what came of it."""
        number, one = self.function(name, event)
        status, body = self.join(number, data, tab, trigger_id=one)
        assert status == 200, body
        return self.outcome(tab)
