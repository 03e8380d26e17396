"""Who is let in, and what is served to whom, over real HTTP."""

import json

import pytest

from tests.demo.conftest import Client, make_server, serving
from tests.demo.visits import CAT, LOOK, paths_of


def test_the_page_runs_a_job(visitor):
    message = visitor.run("preflight", LOOK)
    assert message["success"], message
    assert "<b>cat</b>" in json.dumps(message["output"]["data"])


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://127.0.0.1.evil.example:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1",
        "http://localhost:{port}",
        "http://127.0.0.1:{port}/",
        "file://",
        "",
    ],
)
def test_another_site_does_nothing_as_the_visitor(visitor, origin):
    foreign = {"Origin": origin.format(port=visitor.port)}
    number, _ = visitor.function("preflight")
    for status, body in (
        visitor.join(number, LOOK, headers=foreign),
        visitor.upload(b"x", headers=foreign),
        visitor.post("/gradio_api/cancel", {}, foreign),
        visitor.send("OPTIONS", "/gradio_api/queue/join", headers=foreign)[::2],
        visitor.send("GET", "/config", headers=foreign)[::2],
    ):
        assert status == 403, (origin, body)
    answer = visitor.send("OPTIONS", "/gradio_api/queue/join", headers=foreign)[1]
    assert not [h for h in answer if h.lower().startswith("access-control")]


def test_what_changes_something_names_its_origin(visitor):
    number, _ = visitor.function("preflight")
    assert visitor.join(number, LOOK, headers={"Origin": None})[0] == 403
    crossed = {"Sec-Fetch-Site": "cross-site"}
    assert visitor.join(number, LOOK, headers=crossed)[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil"])
def test_a_name_the_operator_did_not_give_is_refused(visitor, host):
    for path in ("/", "/config", "/theme.css"):
        assert visitor.get(path, Host=host)[0] in (400, 403)
    own = {"Host": host, "Origin": f"http://{host}"}
    number, _ = visitor.function("preflight")
    assert visitor.join(number, LOOK, headers=own)[0] in (400, 403)


def test_a_name_the_operator_gave_is_served(tmp_path):
    with serving(make_server(tmp_path), allowed_hosts=("demo.example",)) as port:
        named = Client(port, headers={"Host": "demo.example"})
        good = {"Origin": "https://demo.example"}
        assert named.upload(b"x", headers=good)[0] == 200
        assert named.upload(b"x", headers={"Origin": "https://evil.example"})[0] == 403
        assert Client(port, enter=False).get("/", Host="other.example")[0] == 403


def test_the_cookie_is_for_this_page_alone(port):
    answer = Client(port, enter=False).send("GET", "/")[1]
    cookie = answer["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "frame-ancestors 'none'" in answer["content-security-policy"]
    entered = Client(port)
    assert "set-cookie" not in entered.send("GET", "/")[1]
    # By another site's link the browser keeps the cookie back: no new one takes its place.
    linked = Client(port, enter=False).send("GET", "/", headers={"Sec-Fetch-Site": "cross-site"})
    assert linked[0] == 200
    assert "set-cookie" not in linked[1]
    assert b"refresh" in linked[2]


def test_without_a_cookie_of_ours_nothing_is_done(port):
    stranger = Client(port, enter=False)
    number, _ = stranger.function("preflight")
    for cookie in ("", f"erase-sd-{port}=made-up", f"erase-sd-{port}=a.b", "other=1"):
        stranger.cookie = cookie
        assert stranger.join(number, LOOK)[0] == 403
        assert stranger.upload(b"x")[0] == 403
        assert stranger.get("/gradio_api/queue/data?session_hash=tab")[0] == 403
        assert stranger.get("/gradio_api/heartbeat/tab")[0] == 403


def test_equal_work_of_two_visitors_is_apart(port):
    ann, bob = Client(port), Client(port)
    found = []
    for one in (ann, bob):
        message = one.run("erase", CAT)
        assert message["success"], message
        paths = set(paths_of(message["output"]["data"]))
        assert len(paths) > 8  # pictures, and three files to take home
        found.append(paths)
    assert not found[0] & found[1]
    for own, other, paths in ((ann, bob, found[0]), (bob, ann, found[1])):
        for path in paths:
            mine = own.send("GET", f"/gradio_api/file={path}")
            assert mine[0] == 200
            assert "no-store" in mine[1]["cache-control"]
            assert other.get(f"/gradio_api/file={path}")[0] == 403


def test_a_session_is_reached_by_its_visitor_alone(port):
    ann, bob = Client(port), Client(port)
    assert ann.run("erase", CAT, tab="same")["success"]
    # The same name, another visitor: nothing is erased there.
    message = bob.run("remove", [["cat"]], tab="same")
    assert message["success"]
    assert not paths_of(message["output"]["data"])
    mine = ann.run("remove", [["cat"]], tab="same")
    assert mine["success"]
    again = ann.run("erase", CAT, tab="same")
    assert again["success"]


def test_a_file_is_deleted_by_its_visitor_alone(port, cat, tmp_path):
    content = cat.save(tmp_path / "cat.safetensors").read_bytes()
    ann, bob = Client(port), Client(port)
    (mine,), (other,) = (json.loads(c.upload(content)[1]) for c in (ann, bob))
    assert mine != other
    number, one = bob.function("upload", "upload")
    for path in (mine, "/etc/passwd", "http://1.1.1.1/x.safetensors", f"{other}/../../../../x"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        status, body = bob.join(number, [file, 1, "emoji-sd"], trigger_id=one)
        assert status == 422, body
        assert b"not yours" in body
    assert ann.get(f"/gradio_api/file={mine}")[0] == 200
    file = {"path": mine, "meta": {"_type": "gradio.FileData"}}
    assert ann.run("upload", [file, 1, "emoji-sd"], event="upload")["success"]
    assert ann.get(f"/gradio_api/file={mine}")[0] == 403  # read, and gone
    assert bob.get(f"/gradio_api/file={other}")[0] == 200


def test_a_job_is_cancelled_by_its_visitor_alone(port):
    ann, bob = Client(port), Client(port)
    number, one = ann.function("erase")
    event = json.loads(ann.join(number, CAT, trigger_id=one)[1])["event_id"]
    asked = {"session_hash": "tab", "fn_index": number, "event_id": event}
    assert bob.post("/gradio_api/cancel", asked)[0] == 403
    assert ann.outcome()["success"]
    assert ann.post("/gradio_api/cancel", asked)[0] == 200


def test_a_cancelled_job_lets_the_next_one_go(port):
    ann = Client(port)
    number, one = ann.function("erase")
    guitar = [1, "a guitar", 7, "emoji-sd", "guitar", "", "rayleigh", False, ""]
    event = json.loads(ann.join(number, guitar, trigger_id=one)[1])["event_id"]
    asked = {"session_hash": "tab", "fn_index": number, "event_id": event}
    assert ann.post("/gradio_api/cancel", asked)[0] == 200
    assert ann.run("preflight", LOOK, tab="next")["success"]
