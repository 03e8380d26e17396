"""What the page's routes take, over real HTTP: messages, files, uploads, a full queue."""

import json

import pytest

from tests.demo.conftest import Client, make_server, serving
from tests.demo.visits import CAT, LOOK, paths_of


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
        [5, "cat", "", "rayleigh", False, ""],
        ["emoji-sd", 5, "", "rayleigh", False, ""],
        ["emoji-sd", "cat", True, "rayleigh", False, ""],
        ["emoji-sd", "cat", "", ["rayleigh"], False, ""],
        ["emoji-sd", "cat", "", "no-such", False, ""],
        ["emoji-sd", "cat", "", None, False, ""],
        ["emoji-sd", "cat", "", "rayleigh", "yes", ""],
        ["/etc", "cat", "", "rayleigh", False, ""],
        ["emoji-sd", "file:/etc/passwd", "", "rayleigh", False, ""],
        ["emoji-sd", "x" * 30_000, "", "rayleigh", False, ""],
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
