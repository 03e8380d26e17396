"""Every handler, called as the page calls it: the embedded model, real files, no page."""

import dataclasses

import pytest
import torch
from PIL import Image

from erase_sd.artifact.erasure import Erasure
from erase_sd.demo import handlers
from erase_sd.demo.inputs import Concept, View, names, number, text, uploaded
from erase_sd.demo.visitor import Session

CAT = Concept("emoji-sd", "cat, kitten", "dog", "rayleigh", False)
VIEW = View(1.0, "", 0)


def last(updates):
    *_, final = updates
    return final


@pytest.fixture(scope="module")
def erased(server, tmp_path_factory):
    """A session in which a cat is erased."""
    start = Session(tmp_path_factory.mktemp("visitor"), "emoji-sd")
    return last(handlers.erase(server, start, CAT, View(1.0, "a cat on a table", 3))).session


def size_of(path):
    with Image.open(path) as image:
        return image.size


def files_of(session):
    return sorted(p for p in session.home.rglob("*") if p.is_file())


def test_preflight_tells_and_keeps_nothing(server, session):
    (update,) = handlers.preflight(server, session, CAT)
    assert "<b>cat</b>, rayleigh" in update.about
    assert "Words that move most" in update.about
    assert update.session is None
    assert files_of(session) == []


def test_a_set_is_named_after_itself(server, session):
    concept = dataclasses.replace(CAT, forget="set:weapons", retain="")
    (update,) = handlers.preflight(server, session, concept)
    assert "<b>set:weapons</b>" in update.about


def test_erasing_tells_then_draws_then_shows(server, session):
    updates = list(handlers.erase(server, session, CAT, VIEW))
    assert updates[0].progress.told == "solving"
    assert "solved in" in updates[1].about
    done = [u.progress.done for u in updates[2:-1]]
    assert done == sorted(done)
    assert updates[-2].progress.done == updates[-2].progress.total
    assert updates[-1].session.names == ["cat"]
    assert session == Session(session.home, "emoji-sd")  # a value: the old one is as it was


def test_what_is_shown_lies_in_the_visitors_folder(erased):
    shots, pictures = erased.shots, erased.pictures
    assert shots[0].prompt == "a cat on a table"
    assert shots[0].seed == 3
    assert len(pictures.before) == len(pictures.after) == len(pictures.pairs) == len(shots)
    everything = [*pictures.before, *pictures.after, *pictures.pairs, *erased.files.values()]
    assert all(p.is_file() and p.is_relative_to(erased.folder) for p in everything)
    assert erased.folder.is_relative_to(erased.home)
    assert size_of(pictures.pairs[0]) == (260, 128)
    assert size_of(pictures.before[0]) == (512, 512)
    assert "recognised of what was to go" in erased.scores
    assert set(erased.files) == {"erasure", "peft", "hosts"}
    assert Erasure.load(erased.files["erasure"]).names == ("cat",)
    assert "pipe.erase(['cat', 'kitten']" in erased.python
    assert erased.shell.startswith("erase-concept erase --forget cat --forget kitten")


def test_a_second_concept_joins_and_another_model_starts_anew(server, erased):
    pizza = dataclasses.replace(CAT, forget="pizza", retain="")
    both = last(handlers.erase(server, erased, pizza, VIEW)).session
    assert both.names == ["cat", "pizza"]
    other = dataclasses.replace(erased, model="another")
    assert last(handlers.erase(server, other, pizza, VIEW)).session.names == ["pizza"]


def test_each_concept_goes_as_far_as_its_own_slider_says(server, erased, dog):
    both = dataclasses.replace(erased, stack=(*erased.stack, dog))
    none = last(handlers.strengthen(server, both, 0, 0.0)).session
    assert [c.strength for e in none.stack for c in e.concepts][0] == 0
    written = Erasure.load(none.files["erasure"])
    # What it has above 1 stays shared among two.
    (part,) = dog.concepts
    other = part.edit.scaled(1 + (part.strength - 1) / 2)
    assert torch.allclose(written.edit.matrix, other.matrix, atol=1e-5)
    assert "--strength 0" in none.shell and both.stack[0].concepts[0].strength > 0
    with pytest.raises(ValueError, match="erased no more"):
        list(handlers.strengthen(server, both, 2, 1.0))


def test_what_appears_instead_is_for_methods_with_a_target(server, session):
    other = dataclasses.replace(CAT, method="uce", toward="a dog")
    new = last(handlers.erase(server, session, other, VIEW)).session
    assert new.stack[0].concepts[0].options["toward"] == "a dog"
    assert "toward='a dog'" in new.python and "--toward 'a dog'" in new.shell
    for wrong, told in (({"method": "rayleigh"}, "no target"), ({"toward": "a, b"}, "one prompt")):
        with pytest.raises(ValueError, match=told):
            list(handlers.preflight(server, session, dataclasses.replace(other, **wrong)))


def test_scale_zero_is_the_original(server, erased):
    none = last(handlers.rescale(server, erased, 0.0)).session
    pairs = zip(none.pictures.before, none.pictures.after, strict=True)
    assert all(b.read_bytes() == a.read_bytes() for b, a in pairs)
    changed = zip(erased.pictures.before, erased.pictures.after, strict=True)
    assert any(b.read_bytes() != a.read_bytes() for b, a in changed)
    assert Erasure.load(none.files["erasure"]).scale == 0
    assert none.names == ["cat"]


def test_removing_the_last_one_leaves_nothing_to_show(server, erased):
    updates = list(handlers.remove(server, erased, ("cat",)))
    assert updates[0].about == handlers.NOTHING
    empty = updates[-1].session
    assert (empty.names, empty.pictures, empty.files, empty.folder) == ([], None, {}, None)
    assert (empty.own, empty.seed) == (erased.own, erased.seed)
    with pytest.raises(ValueError, match="tick what to take out"):
        list(handlers.remove(server, erased, ()))


def test_removing_one_of_two_keeps_the_other(server, erased, dog):
    both = dataclasses.replace(erased, stack=(*erased.stack, dog))
    rest = last(handlers.remove(server, both, ("cat", "no such"))).session
    assert rest.names == ["dog"]


def place(session, content):
    folder = session.home / "uploads" / "1"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_bytes(content)
    return folder / "mine.safetensors"


def test_a_file_is_added_and_the_upload_deleted(server, session, cat, tmp_path_factory):
    content = cat.save(tmp_path_factory.mktemp("x") / "cat.safetensors").read_bytes()
    path = place(session, content)
    updates = list(handlers.add(server, session, path, 1.0, "emoji-sd"))
    assert updates[0].about == "<p>added cat</p>"
    assert updates[-1].session.names == ["cat"]
    assert updates[-1].session.brought
    assert "Erasure.load" in updates[-1].session.python
    assert not path.parent.exists()


def test_a_damaged_file_is_refused_and_deleted(server, session):
    path = place(session, b"\xff" * 100)
    with pytest.raises(ValueError, match=r"^mine.safetensors is damaged"):
        list(handlers.add(server, session, path, 1.0, "emoji-sd"))
    assert not path.exists()


def test_only_an_upload_of_the_visitor_is_read_and_deleted(server, session, erased):
    others = place(Session(session.home / "other", "emoji-sd"), b"x")
    own_work = session.home / "work" / "1" / "no-cat.erasure.safetensors"
    own_work.parent.mkdir(parents=True)
    own_work.write_bytes(b"x")
    place(session, b"x")
    link = session.home / "uploads" / "1" / "link.safetensors"
    link.symlink_to(others)
    for path in (others, own_work, link, erased.files["erasure"]):
        with pytest.raises(ValueError, match="not yours"):
            list(handlers.add(server, session, path, 1.0, "emoji-sd"))
        assert path.exists()


def test_choosing_a_picture(erased, session):
    assert handlers.choose(erased, 1) == (erased.pictures.before[1], erased.pictures.after[1])
    assert handlers.choose(erased, 10_000) is None
    assert handlers.choose(erased, -1) is None
    assert handlers.choose(session, 0) is None


def test_a_job_that_breaks_off_leaves_no_file(server, session, monkeypatch):
    model = server.model("emoji-sd")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "take_home", full)
    with pytest.raises(OSError, match="No space"):
        list(handlers.erase(server, session, CAT, VIEW))
    assert files_of(session) == []


def test_a_class_goes_from_a_classifier(server, session):
    for _ in range(server.limits.tabs + 2):
        (update,) = handlers.unlearn_class(server, session, "mlp", "3", "rayleigh")
    assert "forgotten samples no longer recognised" in update.about
    assert all(path.is_relative_to(session.home) for path, _ in update.pictures)
    assert size_of(update.pictures[0][0]) == (128, 128)
    assert "--forget class:3" in update.shell
    assert len(list((session.home / "class").iterdir())) == server.limits.tabs
    for wrong in (("vgg", "3", "rayleigh"), ("mlp", "x", "rayleigh"), ("mlp", "3", "pgu")):
        with pytest.raises(ValueError, match=r"no network|no class|here are"):
            list(handlers.unlearn_class(server, session, *wrong))


def test_a_report_is_shown_framed(tmp_path):
    from tests.demo.conftest import make_server

    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (inside / "deep" / "report.html").write_text("<script>'&'</script>")
    (outside / "secret.html").write_text("<p>two</p>")
    (inside / "link.html").symlink_to(outside / "secret.html")
    server = make_server(tmp_path / "work")
    assert server.pages() == {}
    server.reports = inside
    assert list(server.pages()) == ["deep/report.html"]
    shown = handlers.show_report(server, "deep/report.html")
    assert 'sandbox=""' in shown
    assert "<script>" not in shown
    assert handlers.show_report(server, "") == ""
    for name in ("link.html", "../out/secret.html", "/etc/passwd"):
        with pytest.raises(ValueError, match="that report is gone"):
            handlers.show_report(server, name)


def test_a_model_the_operator_did_not_name_is_refused(server, session):
    concept = dataclasses.replace(CAT, model="/etc")
    with pytest.raises(ValueError, match="its operator allows no other"):
        list(handlers.preflight(server, session, concept))


@pytest.mark.parametrize(
    "raw",
    [
        (5, "cat", "", "rayleigh", False),
        ("m", ["cat"], "", "rayleigh", False),
        ("m", "cat", {}, "rayleigh", False),
        ("m", "cat", "", "no-such", False),
        ("m", "cat", "", ["rayleigh"], False),
        ("m", "cat", "", "rayleigh", 1),
        ("m", "x" * 20_001, "", "rayleigh", False),
    ],
)
def test_a_concept_is_checked(raw):
    with pytest.raises(ValueError, match="expected"):
        Concept.of(*raw)


def test_numbers_names_and_files_are_checked():
    assert View.of(1, None, None) == View(1.0, "", 0)
    bad = (float("nan"), float("inf"), -0.1, 2.1, True, "1", None, [1])
    for value in bad:
        with pytest.raises(ValueError, match="expected the scale between 0 and 2"):
            number(value, "the scale", most=2)
    assert names(["a"]) == ("a",)
    for value in (None, 5, [5]):
        with pytest.raises(ValueError, match="expected names"):
            names(value)
    for value in (None, "x", {"path": 5}, {"path": "x.pkl"}, {"path": "a\0.safetensors"}):
        with pytest.raises(ValueError, match="one .safetensors file"):
            uploaded(value)
    assert text(None, "x") == ""
