"""The demo without a browser: what it computes, what it refuses, what it leaves behind."""

import os
import shlex

import pytest
import torch

pytest.importorskip("gradio")

from erase_sd.demo.classifier import forget
from erase_sd.demo.house import House, Visit, reports_in
from erase_sd.demo.pieces import outcome_html
from erase_sd.demo.recipe import code, command
from erase_sd.demo.serve import Guard, credentials
from erase_sd.demo.studio import Limits, Shot, Studio
from erase_sd.edit import LowRankEdit
from erase_sd.erasure import Erasure

CAT = [Shot("cat", "a picture of a cat", s, True, "cat") for s in range(3)]


@pytest.fixture(scope="module")
def studio():
    return Studio("emoji-sd")


def last(pictures):
    *_, final = pictures
    return final


def same(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_prompt_lists_are_split_and_bounded():
    limits = Limits(prompt_length=12, prompts=3)
    assert limits.prompt_list(" cat, kitten\n\ncat ", what="forget") == ["cat", "kitten"]
    assert limits.prompt_list("", what="keep") == []
    assert len(limits.prompt_list("set:alcohol", what="forget")) > 3
    for text, words in (("a,b,c,d", "at most 3"), ("x" * 13, "12 characters")):
        with pytest.raises(ValueError, match=words):
            limits.prompt_list(text, what="forget")


@pytest.mark.parametrize("text", ["file:/etc/passwd", "set:../x", "set:/tmp/x.yaml", "set:x.yml"])
def test_a_visitor_names_no_file_of_this_machine(text):
    with pytest.raises(ValueError, match="here are prompts and the sets"):
        Limits().prompt_list(text, what="forget")


def test_erasing_is_seen_and_leaves_the_shared_model_as_it_was(studio):
    original = {n: p.detach().clone() for n, p in studio.pipe.unet.named_parameters()}
    erasure, seconds = studio.erase(["cat", "kitten"], method="rayleigh")
    assert seconds > 0
    before, after = last(studio.draw(CAT, (), 1.0, steps=10)), last(studio.draw(CAT, (erasure,), 1.0, steps=10))
    assert studio.seen(before).count("cat") == 3
    assert studio.seen(after).count("cat") == 0
    assert same(last(studio.draw(CAT, (erasure,), 0.0, steps=10)), before)
    assert all(torch.equal(p, original[n]) for n, p in studio.pipe.unet.named_parameters())
    assert not studio.live.erasures
    assert not studio.pipe.unet._forward_pre_hooks


def test_a_method_that_edits_values_alone_works_too(studio):
    erasure, _ = studio.erase(["cat"], method="speed")
    drawn = last(studio.draw(CAT[:1], (erasure,), 1.0, steps=3))
    assert not same(drawn, last(studio.draw(CAT[:1], (), 1.0, steps=3)))
    assert not studio.live.erasures


def test_visitors_who_take_turns_see_their_own_work_alone(studio):
    cat, pizza = (studio.erase([w], method="rayleigh")[0] for w in ("cat", "pizza"))
    shots = [*CAT, *CAT]  # two batches each
    alone = [last(studio.draw(shots, (e,), 1.0, steps=3)) for e in (cat, pizza)]
    streams = [studio.draw(shots, (e,), 1.0, steps=3) for e in (cat, pizza)]
    together = [[], []]
    for a, b in zip(*streams, strict=True):  # batch by batch in turn
        together = [a, b]
    assert all(same(x, y) for x, y in zip(alone, together, strict=True))


def test_a_failure_while_drawing_leaves_the_model_clean(studio, monkeypatch):
    erasure, _ = studio.erase(["cat"], method="rayleigh")

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("erase_sd.pipelines.sampling.generate", broken)
    with pytest.raises(RuntimeError):
        last(studio.draw(CAT, (erasure,), 1.0))
    assert not studio.live.erasures
    assert not studio.pipe.unet._forward_pre_hooks


def test_stacking_replaces_by_name_and_is_bounded(studio):
    cat, robust, dog = (
        studio.erase(["cat"], method="rayleigh")[0],
        studio.erase(["cat"], method="unlink")[0],
        studio.erase(["dog"], method="rayleigh")[0],
    )
    stack = studio.stacked(studio.stacked((cat,), dog), robust)
    assert [e.parts[0].method for e in stack] == ["rayleigh", "unlink"]
    with pytest.raises(ValueError, match="erasures differ in kinds"):
        studio.stacked(stack, studio.erase(["bird"], method="speed")[0])
    small = Studio.__new__(Studio)
    small.limits = Limits(concepts=1)
    with pytest.raises(ValueError, match="at most 1 concepts"):
        small.stacked((cat,), dog)


def test_what_one_takes_home_does_what_the_page_showed(studio, tmp_path, weights):
    cat, dog = (studio.erase([w], ["horse"], method="rayleigh")[0] for w in ("cat", "dog"))
    shown = last(studio.draw(CAT, (cat, dog), 0.8, steps=5))
    files = studio.files((cat, dog), 0.8, tmp_path)
    assert set(files) == {"erasure", "peft", "kohya"}
    again = studio.open(files["erasure"])
    assert again.names == ("cat", "dog")
    assert same(last(studio.draw(CAT, (again,), 1.0, steps=5)), shown)
    studio.pipe.load_lora_weights(str(tmp_path), weight_name=files["peft"].name)
    try:
        by_lora = last(studio.draw(CAT, (), 1.0, steps=6))  # other steps: no picture is remembered
    finally:
        studio.pipe.unload_lora_weights()
    plain, edited = last(studio.draw(CAT, (), 1.0, steps=7)), last(studio.draw(CAT, (again,), 1.0, steps=6))
    assert all(
        abs(a - b) <= 2
        for x, y in zip(by_lora, edited, strict=True)
        for a, b in zip(x.tobytes(), y.tobytes(), strict=True)
    )
    assert not same(by_lora, plain)


def test_the_code_on_the_page_makes_the_same_erasure(studio, tmp_path, weights, monkeypatch):
    from erase_sd.cli.main import main

    stack = (studio.erase(["cat", "kitten"], ["horse"], method="rayleigh")[0], studio.erase(["dog"], method="uce")[0])
    total = stack[0].scaled(0.8) + stack[1].scaled(0.8)
    text = code("emoji-sd", stack, 0.8).replace('pipe("a photo of a cat").images[0]', "")
    names: dict = {}
    exec(text, names)
    expected = total.weights(weights)
    for name, parameter in names["pipe"].unet.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.float(), expected[name].float(), atol=2e-3)
    monkeypatch.chdir(tmp_path)
    for line in command("emoji-sd", stack, 0.8).splitlines():
        words = shlex.split(line)
        assert words[0] == "erase-concept"
        assert main([*words[1:], *(["--images", "0"] if words[1] == "erase" else [])]) == 0
    written = Erasure.load(tmp_path / "erased" / "erasure.safetensors")
    assert torch.allclose(written.edit.matrix, total.edit.matrix, atol=1e-6)


def test_the_code_for_a_file_that_was_brought_reads_what_is_taken_home(studio, tmp_path, monkeypatch):
    from erase_sd.cli.main import main

    erasure = studio.erase(["cat"], method="uce")[0]
    monkeypatch.chdir(tmp_path)
    files = studio.files((erasure,), 0.5, tmp_path)
    names: dict = {}
    exec(code("emoji-sd", (erasure,), 0.5, brought=True).rpartition("\n")[0], names)
    expected = Erasure.load(files["erasure"]).weights(studio.live.originals(), allow_other_base=True)
    parameters = dict(names["pipe"].unet.named_parameters())
    assert all(torch.allclose(parameters[n].float(), w.float(), atol=2e-3) for n, w in expected.items())
    assert main(shlex.split(command("emoji-sd", (erasure,), 0.5, brought=True))[1:]) == 0
    assert torch.equal(Erasure.load(tmp_path / "erased" / "erasure.safetensors").edit.A, (0.5 * erasure.edit.A))


def test_without_nudenet_the_page_says_so(studio, monkeypatch):
    blind = Studio.__new__(Studio)
    blind.embedded = False
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert blind.seen([None, None]) == ["NudeNet is not installed"] * 2


def test_an_erasure_file_for_another_model_is_refused(studio, tmp_path):
    import dataclasses

    erasure, _ = studio.erase(["cat"], method="rayleigh")
    path = dataclasses.replace(erasure, text_encoder="x").save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another text encoder"):
        studio.open(path)
    dataclasses.replace(erasure, base={n: "0" for n in erasure.base}).save(path, force=True)
    with pytest.raises(ValueError, match="another base"):
        studio.open(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="^other.safetensors is damaged"):  # and not where it lies
        studio.open(path)


def part_of(studio, **changes):
    import dataclasses

    erasure, _ = studio.erase(["cat"], method="rayleigh")
    return dataclasses.replace(erasure, parts=(dataclasses.replace(erasure.parts[0], **changes),))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"forget": ("z " * 400_000,)}, "more or longer prompts"),
        ({"forget": tuple(f"p{i}" for i in range(1000))}, "more or longer prompts"),
        ({"forget": ()}, "names no forget prompts"),
        ({"forget": (5,)}, "names no forget prompts"),
        ({"strength": 1e9}, "strength between 0 and 10"),
        ({"edits": {"tokens": LowRankEdit(torch.zeros(1, 1), torch.zeros(1, 1))}}, "width"),
        ({"edits": {"tokens": LowRankEdit(torch.zeros(1, 400), torch.zeros(1, 400))}}, "rank within the width"),
    ],
)
def test_a_file_that_asks_for_more_than_the_page_allows_is_refused(studio, tmp_path, changes, told):
    path = part_of(studio, **changes).save(tmp_path / "big.safetensors")
    with pytest.raises(ValueError, match=told):
        studio.open(path)


def test_any_name_makes_a_file_name(studio, tmp_path):
    files = studio.files((part_of(studio, name="\U00020000" * 60 + "/../x"),), 1.0, tmp_path)
    assert all(p.parent == tmp_path and p.name.isascii() and len(p.name) < 100 for p in files.values())


def test_all_sets_at_once_are_too_many():
    from erase_sd.prompts import set_names

    with pytest.raises(ValueError, match="with all sets"):
        Limits().prompt_list(", ".join(f"set:{n}" for n in set_names()), what="forget")
    assert len(Limits().prompt_list("set:nudity", what="forget")) > 5


def test_a_visit_takes_its_files_along(tmp_path):
    house = House(("emoji-sd",), tmp_path)
    own, old, new = tmp_path / "visit", tmp_path / "gradio" / "old", tmp_path / "gradio" / "new"
    for folder in (own, old, new):
        folder.mkdir(parents=True)
        (folder / "x.safetensors").write_bytes(b"x")
    house.leave(Visit("emoji-sd", folder=own))
    assert not own.exists()
    os.utime(old, (0, 0))
    house.sweep()  # what a visit left that never said good-bye
    assert new.exists()
    assert not old.exists()
    with pytest.raises(ValueError, match="its operator allows no other"):
        house.studio("/etc")


def test_reports_come_from_their_folder_alone(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (inside / "deep" / "report.html").write_text("<p>one</p>")
    (outside / "secret.html").write_text("<p>two</p>")
    os.symlink(outside / "secret.html", inside / "link.html")
    assert list(reports_in(inside)) == ["deep/report.html"]
    assert reports_in(None) == {}


def test_requests_are_small_and_for_what_the_page_needs(tmp_path):
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    async def take(request: Request):
        async with request.form() as form:
            return PlainTextResponse(str(len(await form["files"].read())))

    async def any_route(request: Request):
        return PlainTextResponse("reached")

    paths = ("/gradio_api/component_server", "/gradio_api/queue/join", "/gradio_api/process_recording", "/config")
    routes = [Route(p, any_route, methods=["GET", "POST"]) for p in paths]
    routes += [Route("/gradio_api/file={path:path}", any_route)]
    routes += [Route("/gradio_api/upload", take, methods=["POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, folder=tmp_path)])
    client = TestClient(app)

    def send(name, size):
        return client.post("/gradio_api/upload", files={"files": (name, b"x" * size)})

    good = send("a.safetensors", 100_000)
    assert (good.status_code, good.text) == (200, "100000")
    assert "default-src 'self'" in good.headers["content-security-policy"]
    assert send("a.html", 10).status_code == 415
    assert send("a.safetensors.pkl", 10).status_code == 415
    assert client.post("/gradio_api/upload", content=b"nothing").status_code == 415
    assert send("a.safetensors", 3_000_000).status_code == 413
    both = {"a": ("a.safetensors", b"x"), "files": ("b.py", b"x")}
    assert client.post("/gradio_api/upload", files=both).status_code == 415
    assert client.post("/gradio_api/upload", files={"other": ("a.safetensors", b"x")}).status_code == 415
    hidden = (
        b'--b\r\nX-A: filename="a.safetensors"\r\nContent-Disposition: form-data; name="files"; FILENAME="evil.html"'
        b"\r\n\r\nx\r\n--b--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/gradio_api/upload", content=hidden, headers=kind).status_code == 415
    for path, status in {
        "/config": 200,
        "/gradio_api/component_server": 404,
        "/gradio_api/process_recording": 404,
        f"/gradio_api/file={tmp_path}/x.png": 200,
        f"/gradio_api/file={tmp_path}/../x.png": 403,
        "/gradio_api/file=http://127.0.0.1/x.png": 403,
        "/gradio_api/file=/etc/passwd": 403,
    }.items():
        assert client.get(path).status_code == status, path
    assert client.post("/gradio_api/component_server", json={}).status_code == 404
    assert client.post("/gradio_api/queue/join", content=b"x" * 1000).status_code == 200
    assert client.post("/gradio_api/queue/join", content=b"x" * 300_000).status_code == 413
    assert client.put("/config").status_code == 404


def test_the_password_comes_from_the_environment(monkeypatch):
    from erase_sd.cli.main import main

    monkeypatch.setenv("ERASE_SD_AUTH", "ann:se:cret")
    assert credentials() == ("ann", "se:cret")
    for bad in ("", "ann", "ann:", ":x"):
        monkeypatch.setenv("ERASE_SD_AUTH", bad)
        assert main(["demo", "--auth"]) == 2
    assert main(["demo", "--queue", "0"]) == 2
    assert main(["demo", "--reports", "/no/such/folder"]) == 2


@pytest.mark.parametrize(("network", "label"), [("mlp", "3"), ("emoji-clip", "pizza")])
def test_the_classifier_forgets_a_class(network, label):
    outcome = forget(network, label, "rayleigh")
    first = outcome.classes[0]
    assert first[0] == label
    assert first[1] > 0.8
    assert first[2] < 0.1
    assert outcome.numbers["after"]["UA"] > 95
    assert outcome.numbers["after"]["RA"] > outcome.numbers["before"]["RA"] - 3
    assert outcome.pictures
    assert "<script" not in outcome_html(outcome, "<script>")
    with pytest.raises(ValueError, match="no network"):
        forget("vgg", "3", "rayleigh")


def test_another_model_is_looked_at_by_nudenet(tmp_path):
    pytest.importorskip("nudenet")
    from erase_sd.bench.shapes import write_folder

    studio = Studio(str(write_folder(tmp_path / "model", "sd1", small=True)))
    assert not studio.embedded
    erasure, _ = studio.erase(["cat"], method="unlink")
    shots = studio.shots((erasure,), "a house", 0)[:2]
    pictures = last(studio.draw(shots, (erasure,), 1.0, steps=2))
    assert shots[0].label == "your prompt"
    assert len(studio.seen(pictures)) == 2
    assert str(tmp_path) not in code("model", (erasure,), 1.0)
