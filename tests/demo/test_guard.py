"""The page over real HTTP: who is let in, what is served to whom."""

import json

import pytest

from tests.demo.conftest import Client, make_server, serving

CAT = [1, "", 0, "emoji-sd", "cat", "", "rayleigh", False]
LOOK = ["emoji-sd", "cat", "", "rayleigh", False]


@pytest.fixture(scope="module")
def visitor(port):
    return Client(port)


def paths_of(message):
    """All files that an answer of the queue names."""
    found = []

    def walk(value):
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                found.append(value["path"])
            value = list(value.values())
        if isinstance(value, list):
            for v in value:
                walk(v)

    walk(message)
    return found


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
    guitar = [1, "a guitar", 7, "emoji-sd", "guitar", "", "rayleigh", False]
    event = json.loads(ann.join(number, guitar, trigger_id=one)[1])["event_id"]
    asked = {"session_hash": "tab", "fn_index": number, "event_id": event}
    assert ann.post("/gradio_api/cancel", asked)[0] == 200
    assert ann.run("preflight", LOOK, tab="next")["success"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"fn_index": NaN, "data": [], "session_hash": "tab"}',
        {"data": [], "session_hash": "tab"},
        {"fn_index": "0", "data": LOOK, "session_hash": "tab"},
        {"fn_index": True, "data": LOOK, "session_hash": "tab"},
        {"fn_index": -1, "data": LOOK, "session_hash": "tab"},
        {"fn_index": 10**30, "data": LOOK, "session_hash": "tab"},
        {"fn_index": None, "data": None, "session_hash": None},
        {"fn_index": "OK", "data": LOOK[:-1], "session_hash": "tab"},
        {"fn_index": "OK", "data": [*LOOK, 1], "session_hash": "tab"},
        {"fn_index": "OK", "data": "cat", "session_hash": "tab"},
        {"fn_index": "OK", "data": [{"a": 1}] * 5, "session_hash": "tab"},
        {"fn_index": "OK", "data": [[[]]] * 5, "session_hash": "tab"},
        {"fn_index": "OK", "data": [1e300] * 5, "session_hash": "tab"},
        {"fn_index": "OK", "data": ["\ud800"] * 5, "session_hash": "tab"},
        {"fn_index": "OK", "data": LOOK, "session_hash": "../x"},
        {"fn_index": "OK", "data": LOOK, "session_hash": 5},
        {"fn_index": "OK", "data": LOOK, "session_hash": "tab", "trigger_id": "x"},
        {"fn_index": "OK", "data": LOOK, "session_hash": "tab", "event_data": {"index": "x"}},
    ],
)
def test_malformed_messages_are_refused_without_a_traceback(visitor, body, capfd):
    if isinstance(body, dict) and body.get("fn_index") == "OK":
        body = body | {"fn_index": visitor.function("preflight")[0]}
    for path in ("queue/join", "cancel"):
        status, told = visitor.post(f"/gradio_api/{path}", body)
        assert status == 422, told
        assert b"\n" not in told
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "data",
    [
        [5, "cat", "", "rayleigh", False],
        ["emoji-sd", 5, "", "rayleigh", False],
        ["emoji-sd", "cat", True, "rayleigh", False],
        ["emoji-sd", "cat", "", ["rayleigh"], False],
        ["emoji-sd", "cat", "", "no-such", False],
        ["emoji-sd", "cat", "", None, False],
        ["emoji-sd", "cat", "", "rayleigh", "yes"],
        ["/etc", "cat", "", "rayleigh", False],
        ["emoji-sd", "file:/etc/passwd", "", "rayleigh", False],
        ["emoji-sd", "x" * 30_000, "", "rayleigh", False],
    ],
)
def test_values_of_the_wrong_kind_are_told_in_one_line(visitor, data, capfd):
    message = visitor.run("preflight", data)
    assert not message["success"]
    assert message["output"]["title"] == "That does not work"
    assert "Traceback" not in capfd.readouterr().err


def test_routes_the_page_does_not_need_are_not_there(visitor):
    for path in (
        "/gradio_api/info",
        "/gradio_api/queue/status",
        "/gradio_api/component_server",
        "/gradio_api/proxy=http://1.1.1.1/",
        "/gradio_api/upload_progress?upload_id=x",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/login",
    ):
        assert visitor.get(path)[0] == 404, path
    for path in (
        "run/predict",
        "call/erase",
        "api/predict",
        "component_server",
        "process_recording",
    ):
        assert visitor.post(f"/gradio_api/{path}", {})[0] == 404, path
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        own = {"Origin": f"http://{visitor.host}"}
        assert visitor.send(method, "/config", headers=own)[0] == 404
    assert visitor.send("GET", "/config", b"x")[0] == 400


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "{folder}/../x", "{folder}", "http://1.1.1.1/x.png", "{folder}/%00", "..", ""],
)
def test_no_other_file_is_served(visitor, server, path):
    told = path.format(folder=server.folder)
    assert visitor.get(f"/gradio_api/file={told}")[0] == 403


def test_uploads_are_small_few_and_erasures(port):
    client = Client(port)
    assert client.upload(b"x", "page.html")[0] == 415
    assert client.upload(b"x", "a.safetensors.pkl")[0] == 415
    assert client.upload(b"x", field="other")[0] == 415
    assert client.upload(b"x" * 2_500_000)[0] == 413
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for body in (b"nothing", b'--b\r\nX-A: filename="a.safetensors"\r\n\r\nx\r\n--b--\r\n'):
        assert client.post("/gradio_api/upload", body, kind)[0] == 415
    assert client.post("/gradio_api/queue/join", b"x" * 300_000)[0] == 413
    found = [client.upload(b"x", f"{i}.safetensors") for i in range(10)]
    assert [status for status, _ in found] == [200] * 8 + [429] * 2
    (kept,) = json.loads(found[0][1])
    assert kept.endswith("/0.safetensors")
    (odd,) = json.loads(Client(port).upload(b"x", "../\u00e9 <b>.safetensors")[1])
    assert odd.rpartition("/")[2].isascii()
    assert "<" not in odd


def test_small_things_on_the_page_work_without_the_queue(port, capfd):
    client = Client(port)
    assert client.run("erase", CAT)["success"]
    number, one = client.function("gallery", "select")
    client.join(number, [], trigger_id=one, event_data={"index": 1})
    chosen = paths_of(client.outcome()["output"]["data"])
    assert [p.rpartition("/")[2] for p in chosen] == ["before-1.png", "after-1.png"]
    assert all(client.get(f"/gradio_api/file={p}")[0] == 200 for p in chosen)
    client.join(number, [], trigger_id=one)  # no picture was chosen
    assert client.outcome()["output"]["title"] == "That does not work"
    for network, success in (("emoji-clip", True), ("no-such", False), (5, False)):
        assert client.run("network", [network], event="change")["success"] is success
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_queue_says_so_and_goes_on(tmp_path):
    server = make_server(tmp_path, steps=2, waiting=2)
    with serving(server) as port:
        clients = [Client(port) for _ in range(6)]
        number, one = clients[0].function("preflight")
        for client in clients:
            assert client.join(number, LOOK, trigger_id=one)[0] == 200
        found = [client.outcome() for client in clients]
        told = [m["output"].get("error") for m in found if not m["success"]]
        assert found[0]["success"]
        assert told
        assert all("the demo is busy" in t for t in told)
        assert clients[-1].run("preflight", LOOK)["success"]
