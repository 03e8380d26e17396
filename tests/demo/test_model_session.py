"""One model and any number of visitors: what is computed, and that nothing of it stays."""

import dataclasses
import time

import pytest
import torch

pytest.importorskip("gradio")

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.demo.budget import Budget, OverBudget
from erase_sd.demo.limits import Limits
from erase_sd.demo.model_session import ModelSession
from erase_sd.demo.pictures import Shot
from tests.models import tiny, tiny_video

CAT = [Shot("cat", "a picture of a cat", s, True, "cat") for s in range(3)]


def part(erasure, name):
    return dataclasses.replace(erasure.concepts[0], name=name)


def last(pictures):
    *_, final = pictures
    return final


def same(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_erasing_is_seen_and_leaves_the_shared_model_as_it_was(model):
    original = {n: p.detach().clone() for n, p in model.pipe.unet.named_parameters()}
    erasure, seconds = model.erase(["cat", "kitten"], method="rayleigh")
    assert seconds > 0
    before, after = (
        last(model.draw(CAT, (), 1.0, steps=10)),
        last(model.draw(CAT, (erasure,), 1.0, steps=10)),
    )
    assert model.seen(before).count("cat") == 3
    assert model.seen(after).count("cat") == 0
    assert same(last(model.draw(CAT, (erasure,), 0.0, steps=10)), before)
    assert all(torch.equal(p, original[n]) for n, p in model.pipe.unet.named_parameters())
    assert not model.live.erasures
    assert len(model.pipe.unet._forward_pre_hooks) == 1  # the budget's


def test_a_method_that_edits_values_alone_works_too(model):
    erasure, _ = model.erase(["cat"], method="speed")
    drawn = last(model.draw(CAT[:1], (erasure,), 1.0, steps=3))
    assert not same(drawn, last(model.draw(CAT[:1], (), 1.0, steps=3)))
    assert not model.live.erasures


def test_visitors_who_take_turns_see_their_own_work_alone(model):
    cat, pizza = (model.erase([w], method="rayleigh")[0] for w in ("cat", "pizza"))
    shots = [*CAT, *CAT]  # two batches each
    alone = [last(model.draw(shots, (e,), 1.0, steps=3)) for e in (cat, pizza)]
    streams = [model.draw(shots, (e,), 1.0, steps=3) for e in (cat, pizza)]
    together = [[], []]
    for a, b in zip(*streams, strict=True):  # batch by batch in turn
        together = [a, b]
    assert all(same(x, y) for x, y in zip(alone, together, strict=True))


def test_a_failure_while_drawing_leaves_the_model_clean(model, monkeypatch):
    erasure, _ = model.erase(["cat"], method="rayleigh")

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("erase_sd.demo.model_session.generate", broken)
    with pytest.raises(RuntimeError):
        last(model.draw(CAT, (erasure,), 1.0))
    assert not model.live.erasures
    assert len(model.pipe.unet._forward_pre_hooks) == 1


def test_stacking_replaces_by_name_and_is_bounded(model):
    cat, robust, dog = (
        model.erase(["cat"], method="rayleigh")[0],
        model.erase(["cat"], method="unlink")[0],
        model.erase(["dog"], method="rayleigh")[0],
    )
    stack = model.stacked(model.stacked((cat,), dog), robust)
    assert [e.concepts[0].method for e in stack] == ["rayleigh", "unlink"]
    with pytest.raises(ValueError, match="erasures differ in kinds"):
        model.stacked(stack, model.erase(["bird"], method="speed")[0])
    words = ("bird", "pizza", "guitar", "horse", "rose", "car", "apple")
    full = (cat, dog, *(dataclasses.replace(cat, concepts=(part(cat, w),)) for w in words[:6]))
    assert len(full) == model.limits.concepts
    with pytest.raises(ValueError, match="at most 8 concepts"):
        model.stacked(full, dataclasses.replace(cat, concepts=(part(cat, words[6]),)))


def test_what_one_takes_home_does_what_the_page_showed(model, tmp_path, weights):
    cat, dog = (model.erase([w], ["horse"], method="rayleigh")[0] for w in ("cat", "dog"))
    shown = last(model.draw(CAT, (cat, dog), 0.8, steps=5))
    files = model.take_home((cat, dog), 0.8, tmp_path)
    assert set(files) == {"erasure", "peft", "hosts"}
    again = model.open_file(files["erasure"])
    assert again.names == ("cat", "dog")
    assert same(last(model.draw(CAT, (again,), 1.0, steps=5)), shown)
    model.pipe.load_lora_weights(str(tmp_path), weight_name=files["peft"].name)
    try:
        by_lora = last(model.draw(CAT, (), 1.0, steps=6))  # other steps: no picture is remembered
    finally:
        model.pipe.unload_lora_weights()
    plain, edited = (
        last(model.draw(CAT, (), 1.0, steps=7)),
        last(model.draw(CAT, (again,), 1.0, steps=6)),
    )
    assert all(
        abs(a - b) <= 2
        for x, y in zip(by_lora, edited, strict=True)
        for a, b in zip(x.tobytes(), y.tobytes(), strict=True)
    )
    assert not same(by_lora, plain)


def test_an_erasure_file_for_another_model_is_refused(model, tmp_path):
    erasure, _ = model.erase(["cat"], method="rayleigh")
    path = dataclasses.replace(erasure, text_encoder="x").save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another text encoder"):
        model.open_file(path)
    dataclasses.replace(erasure, base={n: "0" * 64 for n in erasure.base}).save(path, force=True)
    with pytest.raises(ValueError, match="another base"):
        model.open_file(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="^other.safetensors is damaged"):  # and not where it lies
        model.open_file(path)


def part_of(model, **changes):
    erasure, _ = model.erase(["cat"], method="rayleigh")
    return dataclasses.replace(
        erasure, concepts=(dataclasses.replace(erasure.concepts[0], **changes),)
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"forget": ("z " * 400_000,)}, "forget is missing or malformed"),
        ({"forget": tuple(f"p{i}" for i in range(1000))}, "more or longer prompts"),
        ({"forget": ()}, "names no forget prompts"),
        ({"forget": (5,)}, "forget is missing or malformed"),
        ({"strength": 1e9}, "strength is missing or malformed"),
        ({"strength": 50.0}, "strength between 0 and 10"),
        ({"right": {"tokens": LowRankEdit(torch.zeros(1, 1), torch.zeros(1, 1))}}, "width"),
        (
            {"right": {"tokens": LowRankEdit(torch.zeros(1, 400), torch.zeros(1, 400))}},
            "rank within the width",
        ),
    ],
)
def test_a_file_that_asks_for_more_than_the_page_allows_is_refused(model, tmp_path, changes, told):
    path = part_of(model, **changes).save(tmp_path / "big.safetensors")
    with pytest.raises(ValueError, match=told):
        model.open_file(path)


def test_any_name_makes_a_file_name(model, tmp_path):
    files = model.take_home((part_of(model, name="\U00020000" * 60 + "/../x"),), 1.0, tmp_path)
    assert all(
        p.parent == tmp_path and p.name.isascii() and len(p.name) < 100 for p in files.values()
    )


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """A small model that the judge does not know."""
    from lab.shapes import write_folder

    return str(write_folder(tmp_path_factory.mktemp("another") / "model", "sd1", small=True))


def test_another_model_is_looked_at_by_nudenet(another):
    pytest.importorskip("nudenet")
    model = ModelSession(another)
    assert not model.judged
    erasure, _ = model.erase(["cat"], method="unlink")
    shots = model.shots((erasure,), "a house", 0)[:2]
    pictures = last(model.draw(shots, (erasure,), 1.0, steps=2))
    assert shots[0].label == "your prompt"
    assert len(model.seen(pictures)) == 2


def test_without_nudenet_the_page_says_so(another, monkeypatch):
    model = ModelSession(another)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert model.seen([None, None]) == ["NudeNet is not installed"] * 2


def test_a_pass_through_a_network_asks_for_the_time(model):
    budget = Budget(60)
    with budget.spending():
        last(model.draw(CAT[:1], (), 1.0, steps=4))
    budget.stopped = True
    pictures = model.draw([dataclasses.replace(CAT[0], seed=99)], (), 1.0, steps=4)
    with pytest.raises(OverBudget):
        with budget.spending():
            last(pictures)
    erasure, _ = model.erase(["cat"], method="rayleigh")  # and nothing is left of it
    assert not model.live.erasures
    assert erasure.names == ("cat",)


def test_a_time_limit_holds_inside_a_batch(model):
    budget = Budget(0.2)
    start = time.monotonic()
    with pytest.raises(OverBudget, match="0.2 s"), budget.spending():
        last(model.draw([dataclasses.replace(CAT[0], seed=77)], (), 1.0, steps=999))
    assert time.monotonic() - start < 10


def test_a_transformer_is_offered_like_any_model_and_one_that_makes_films_is_not(tmp_path):
    """At its own guidance, with the LoRA forms that exist for it."""
    tiny.flux().save_pretrained(tmp_path / "flux")
    model = ModelSession(str(tmp_path / "flux"), limits=Limits(steps=1))
    assert model.guidance == 3.5 and not model.judged
    erasure, _ = model.erase(["cat"], method="unlink")
    (*_, drawn) = model.draw([Shot("cat", "a cat", 0, True)], (erasure,), 1.0)
    (*_, plain) = model.draw([Shot("cat", "a cat", 0, True)], (), 1.0)
    assert drawn[0].tobytes() != plain[0].tobytes()
    assert set(model.take_home((erasure,), 1.0, tmp_path)) == {"erasure", "peft", "hosts"}
    tiny_video.ltx().save_pretrained(tmp_path / "ltx")
    with pytest.raises(ValueError, match="makes films; the page shows pictures"):
        ModelSession(str(tmp_path / "ltx"))
