"""The server ends when it is told to, whoever listens and whatever runs."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

from erase_sd.demo import serve
from erase_sd.demo.ending import CUT, GRACE, cut
from erase_sd.demo.limits import Limits
from erase_sd.demo.turns import Busy, Turns
from tests.demo.conftest import Client, make_server, serving
from tests.demo.test_turns import LOOK, somebody


class Endless:
    """A model whose answers take longer than anybody waits."""

    def __init__(self):
        self.begun, self.over = threading.Event(), threading.Event()

    def __getattr__(self, name):
        def taking(*_, **__):
            self.begun.set()
            self.over.wait(120)
            raise ValueError("over")

        return taking


def held(client, path, method="GET", body=b"", length=None):
    """A request of a visitor whose answer is not read to its end, on a connection that stays."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {client.host}\r\nCookie: {client.cookie}\r\n"
    head += f"Origin: http://{client.host}\r\nContent-Type: application/json\r\n"
    if length is not None:
        head += f"Content-Length: {length}\r\n"
    connection = socket.create_connection(("127.0.0.1", client.port), 10)
    connection.sendall(head.encode() + b"\r\n" + body)
    return connection


def test_streams_half_requests_jobs_and_tasks_do_not_hold_it(tmp_path, monkeypatch):
    """Two jobs, so that the end of the first, which is stopped, would begin the second."""
    lost = []

    async def deaf(_):
        while True:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                lost.append(1)

    monkeypatch.setattr(serve, "_sweep", deaf)
    server, model = make_server(tmp_path), Endless()
    server._loaded["emoji-sd"] = model
    with contextlib.ExitStack() as open_ones:
        with serving(server) as port:
            client = Client(port)
            number, one = client.function("preflight")
            for tab in ("a", "b"):
                assert client.join(number, LOOK, tab=tab, trigger_id=one)[0] == 200
            paths = ["/gradio_api/heartbeat/a", "/gradio_api/queue/data?session_hash=a"]
            for path in paths:
                stream = open_ones.enter_context(held(client, path))
                assert stream.recv(12) == b"HTTP/1.1 200"
            body = json.dumps({"fn_index": 1}).encode()
            open_ones.enter_context(held(client, "/gradio_api/queue/join", "POST", body, 10_000))
            assert model.begun.wait(60)
            told = time.monotonic()
        assert time.monotonic() - told < 2 * (GRACE + CUT)
        assert all(job.budget.stopped for job in server.turns._jobs)
        assert lost
        model.over.set()


@pytest.mark.parametrize("deaf", [1, 1_000])
def test_a_task_that_loses_its_cancellation_is_told_again(deaf, caplog):
    loop = asyncio.new_event_loop()
    lost = []

    async def stubborn():
        while True:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                if len(lost) >= deaf:
                    raise
                lost.append(1)

    async def begun():
        task = asyncio.create_task(stubborn(), name="the stubborn one")
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(begun())
    start = time.monotonic()
    cut(loop)
    assert loop.is_closed() and time.monotonic() - start < 30
    assert task.cancelled() == (deaf == 1)
    assert ("a task does not: the stubborn one" in caplog.text) == (deaf > 1)
    task._log_destroy_pending = False  # it is lost on purpose


def test_jobs_are_stopped_and_none_begins(tmp_path):
    turns = Turns(Limits())

    async def stopped():
        with turns.job(somebody(tmp_path, "ann")) as job:
            turns.stop()
            with pytest.raises(ValueError, match="stopped"):
                await job.step(lambda: None)
            with pytest.raises(Busy, match="the demo ends"), turns.job(somebody(tmp_path, "bob")):
                pass

    asyncio.run(stopped())
