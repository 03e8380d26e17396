"""Clients who are slow, half open, or many."""

import contextlib
import socket
import time

import pytest

from tests.demo.conftest import Client, make_server, serving, upload_body

HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """A server that waits for little."""
    limits = {
        "header_seconds": 0.6,
        "body_seconds": 0.6,
        "stall_seconds": 0.6,
        "connections": 20,
        "streams": 2,
        "bodies_bytes": 4_000_000,
    }
    with serving(make_server(tmp_path_factory.mktemp("brief"), **limits)) as port:
        yield port


def opened(port, data=b"", address="127.0.0.1"):
    connection = socket.create_connection(("127.0.0.1", port), 10, source_address=(address, 0))
    connection.sendall(data)
    return connection


def closes(connection, within):
    """Whether the server ends a connection in time; what it says before is read."""
    connection.settimeout(within)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_half_a_header_is_not_waited_for(brief):
    with contextlib.closing(opened(brief, HALF)) as one, contextlib.closing(opened(brief)) as other:
        assert closes(one, 5)
        assert closes(other, 5)


def test_a_header_in_drips_is_not_waited_for(brief):
    start = time.monotonic()
    with contextlib.closing(opened(brief, HALF)) as one, pytest.raises(OSError):
        while time.monotonic() < start + 5:
            one.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - start < 4


def test_a_second_header_in_drips_is_not_waited_for(brief):
    whole = b"GET /robots.txt HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    start = time.monotonic()
    with contextlib.closing(opened(brief, whole)) as one:
        assert one.recv(65536).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):
            for _ in range(100):
                one.sendall(HALF[:1] if _ == 0 else b"x")
                time.sleep(0.05)
    assert time.monotonic() - start < 5


def test_half_open_clients_do_not_keep_others_out(brief):
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(contextlib.closing(opened(brief, HALF)))
        start = time.monotonic()
        assert Client(brief).get("/config")[0] == 200
        assert time.monotonic() - start < 10


def test_half_a_body_is_not_waited_for(brief):
    client = Client(brief)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {client.host}\r\nOrigin: http://{client.host}"
        f"\r\nCookie: {client.cookie}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 1000000\r\n\r\n"
    ).encode()
    whole = upload_body(b"x" * 1000)
    with contextlib.closing(opened(brief, head + whole[:500])) as one:
        one.settimeout(5)
        assert one.recv(65536).startswith(b"HTTP/1.1 408")
        assert closes(one, 5)
    held = [opened(brief, head) for _ in range(3)]  # the memory for bodies is shared, and bounded
    told = [c.recv(65536).partition(b"\r\n")[0] for c in held]
    for one in held:
        one.close()
    assert told.count(b"HTTP/1.1 503 Service Unavailable") == 1
    assert client.upload(b"x")[0] == 200


def test_who_is_refused_cannot_go_on_sending(brief):
    head = f"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1:{brief}\r\nContent-Length: 100000000\r\n\r\n"
    start = time.monotonic()
    with contextlib.closing(opened(brief, head.encode())) as one, pytest.raises(OSError):
        for _ in range(100):
            one.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - start < 5


def test_who_does_not_read_is_not_waited_for(brief):
    asked = b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(10)
        one.connect(("127.0.0.1", brief))
        one.sendall(asked)
        time.sleep(2.5)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while part := one.recv(65536):
                got += part
        assert got.count(b"HTTP/1.1 200") < 200  # the rest was given up


def test_a_visitor_listens_to_so_many_answers_without_an_end(brief):
    client = Client(brief)
    head = (
        f"GET /gradio_api/heartbeat/tab HTTP/1.1\r\nHost: {client.host}\r\n"
        f"Cookie: {client.cookie}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            one = stack.enter_context(contextlib.closing(opened(brief, head)))
            assert one.recv(100).startswith(b"HTTP/1.1 200")
        assert client.get("/gradio_api/heartbeat/tab")[0] == 429
        assert Client(brief).get("/config")[0] == 200


def test_what_is_no_http_is_refused(brief, capfd):
    for data in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"x" * 100_000):
        with contextlib.closing(opened(brief, data)) as one:
            assert closes(one, 5)
    assert "Traceback" not in capfd.readouterr().err


def test_a_message_that_breaks_http_is_answered_once_and_silently(brief, caplog):
    """The server itself says 400; what refuses the message must not answer it again."""
    broken = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    with contextlib.closing(opened(brief, broken)) as one:
        assert one.recv(65536).startswith(b"HTTP/1.1 400")
        assert closes(one, 5)
    time.sleep(0.2)
    assert not [r for r in caplog.records if r.exc_info]
