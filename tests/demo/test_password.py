"""The password: on every route, and not by trying."""

import base64
import statistics
import time

import pytest

from erase_sd.demo import password as module
from erase_sd.demo.password import FREE, Password
from tests.demo.conftest import Client, make_server, serving


def header(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


GOOD, BAD = header("ann", "se:cret"), header("ann", "wrong")


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    server = make_server(tmp_path_factory.mktemp("closed"), steps=2)
    with serving(server, password=Password("ann", "se:cret")) as port:
        yield port


def test_every_route_asks_for_it(closed):
    client = Client(closed, enter=False)
    for path in (
        "/",
        "/config",
        "/theme.css",
        "/robots.txt",
        "/assets/x.js",
        "/static/img/logo.svg",
        "/gradio_api/app_id",
        "/gradio_api/startup-events",
        "/gradio_api/heartbeat/x",
        "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/file=/etc/passwd",
        "/no/such/route",
    ):
        status, headers, body = client.send("GET", path)
        assert status == 401, path
        assert headers["www-authenticate"].startswith("Basic ")
        assert b"gradio" not in body.lower()
        assert client.send("HEAD", path)[0] == 401
    for path in ("upload", "queue/join", "cancel", "reset"):
        assert client.post(f"/gradio_api/{path}", {})[0] == 401, path
    assert client.post("/login", b"username=ann&password=se:cret")[0] == 401


def test_the_right_one_lets_in(closed):
    client = Client(closed, headers={"Authorization": GOOD})
    message = client.run("preflight", ["emoji-sd", "cat", "", "rayleigh", False, ""])
    assert message["success"], message


def test_a_cookie_alone_does_not_let_in(closed):
    client = Client(closed, headers={"Authorization": GOOD})
    client.headers = {}
    assert client.get("/config")[0] == 401


def test_after_some_wrong_ones_an_address_waits(closed):
    good = Client(closed, "127.0.0.5", headers={"Authorization": GOOD})
    assert good.get("/config")[0] == 200
    thief = Client(closed, "127.0.0.5", enter=False)
    found = [thief.get("/config", Authorization=BAD)[0] for _ in range(FREE + 5)]
    assert found[: FREE - 1] == [401] * (FREE - 1)
    assert found[FREE - 1 :] == [429] * 6
    # Even the right one is not looked at now, so that nothing can be learnt from the answer.
    status, headers, _ = thief.send("GET", "/config", headers={"Authorization": GOOD})
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    # Who is in stays in, and other addresses know nothing of it.
    assert good.get("/config")[0] == 200
    assert Client(closed, "127.0.0.6", headers={"Authorization": GOOD}).get("/config")[0] == 200


@pytest.mark.parametrize(
    "text",
    ["Basic", "Basic !", "Basic \u00ff", "Bearer x", "basic " + GOOD, "Basic YW5u", "x" * 9000],
)
def test_anything_else_is_a_wrong_one(text):
    assert not Password("ann", "se:cret").check(text, "a").admitted


def test_each_wrong_one_doubles_the_wait(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])  # not the loops' clock
    door, waits = Password("ann", "x"), []
    for _ in range(16):
        verdict = door.check(BAD, "a")
        waits.append(verdict.wait)
        now[0] += verdict.wait
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[4:] == [min(300, 2.0**i) for i in range(12)]
    assert door.check(header("ann", "x"), "a").admitted
    assert door.check(BAD, "a").wait == 0  # forgiven


def test_a_flood_of_addresses_is_forgotten_in_order():
    door = Password("ann", "x")
    for _ in range(FREE):
        door.check(BAD, "first")
    assert door.check(BAD, "first").wait
    for i in range(10_000):
        door.check(BAD, str(i))
    assert not door.check(BAD, "first").wait


def test_how_much_is_right_cannot_be_told_from_the_time():
    secret = "s" * 100_000
    door = Password("ann", secret)

    def seconds(password):
        found = []
        for _ in range(200):
            start = time.perf_counter()
            door.check(header("ann", password), "a", known=True)
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    early, late = seconds("x" + secret[1:]), seconds(secret[:-1] + "x")
    assert abs(early - late) < 0.3 * max(early, late)


def test_it_comes_from_the_environment(monkeypatch):
    from erase_sd.cli.main import main

    monkeypatch.setenv("ERASE_SD_AUTH", "ann:se:cret")
    assert Password.from_environment().check(GOOD, "a").admitted
    for bad in ("", "ann", "ann:", ":x"):
        monkeypatch.setenv("ERASE_SD_AUTH", bad)
        assert main(["demo", "--auth"]) == 2
