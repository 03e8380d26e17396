"""The method study: its promises, its measurements, its page."""

import json
from dataclasses import replace

import numpy as np
import pytest

from erase_sd.algebra.methods import METHODS
from erase_sd.emoji.judge import judge
from erase_sd.emoji.world import load_world
from erase_sd.eval.metrics import frechet_distance
from lab.method_study import Plan, attack, measure, settings_of, study_page, tune, whole_plan
from lab.study.grids import GRIDS
from lab.study.measure import Job, Study, on_directions, renders_of
from lab.study.page import OWN, attack_table, goals, method_table, numbers_of, summary
from lab.study.targets import (
    ARTISTS,
    FAMILIES,
    OBJECTS,
    TUNE_ARTISTS,
    TUNE_FAMILIES,
    TUNE_OBJECTS,
    prompts_of,
    target,
)

TINY = Plan(
    grids={"rayleigh": [{}, {"rank": 1}], "unlink": [{}]},
    tune={"object": ("fox",)},
    test={"object": ("cat",)},
    attacked=("cat",),
    seeds=1,
    images=2,
    iterations=1,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"), steps=2)


def test_every_method_is_tuned_on_concepts_it_is_not_tested_on():
    assert set(GRIDS) == set(METHODS)
    assert not set(TUNE_OBJECTS) & set(OBJECTS) and not set(TUNE_ARTISTS) & set(ARTISTS)
    assert not set(TUNE_FAMILIES) & set(FAMILIES)
    tuned_families = {c.name for f in TUNE_FAMILIES for c in load_world().family(f)}
    assert not tuned_families & set(OBJECTS)
    plan = whole_plan(3, 1)
    assert plan.seeds == 3 and len(plan.test["object"]) == 12 and set(plan.grids) == set(METHODS)


@pytest.mark.parametrize(
    "kind,name",
    [("object", "cat"), ("family", "weapon"), ("artist", "noto"), ("ten", "ten objects")],
)
def test_targets_keep_their_promises(kind, name):
    t = target(kind, name)
    assert t == target(kind, name)
    assert not set(t.kept_out) & set(t.retain) and not set(t.neighbours) & set(t.retain)
    assert set(t.kept_in) <= set(t.retain)
    assert not set(t.probes) & set(t.forget) and not set(t.synonyms) & set(t.forget)
    if kind == "family":
        assert set(t.forget) == {c.name for c in load_world().family(name)}
    if kind == "ten":
        assert set(t.forget) == set(OBJECTS[:10])
    asked = prompts_of(t)
    assert {want for _, want in asked["out"]} == set(t.kept_out)
    if kind != "artist":
        first = {n: c.name for c in load_world().concepts for n in c.all_names}
        for prompt, want in asked["synonym"]:
            noun = prompt.removeprefix("a ").removeprefix("an ")
            assert first[noun] == want in t.forget


def test_summary_is_the_harmonic_mean_of_forgotten_and_retained():
    entry = {"before": {"out": 0.8}, "after": {"forget": 0.2, "synonym": 0.0, "out": 0.4}}
    s = summary(entry)
    assert s["forgotten"] == pytest.approx(0.9) and s["retained"] == pytest.approx(0.5)
    assert s["harmonic"] == pytest.approx(2 * 0.9 * 0.5 / 1.4)


def test_a_few_directions_hold_most_of_a_thin_set():
    """In a set of four directions, four of them hold all of its distance to another such set."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 4)))[0]
    a, b = rng.normal(size=(30, 4)), rng.normal(1, 2, size=(30, 4))
    want = frechet_distance(a, b)
    got = on_directions(a @ basis.T, b @ basis.T, 4)
    assert got[0].shape == (30, 4) and frechet_distance(*got) == pytest.approx(want)
    assert frechet_distance(*on_directions(a @ basis.T, b @ basis.T, 2)) < want


def test_an_attackers_pictures_are_renders_of_the_object():
    assert judge(renders_of("pizza", 5)).top == ["pizza"] * 5


def test_a_whole_small_study_and_its_page(study, tmp_path, capsys):
    """From tuning to the page; then all of it again from the journal, without a picture."""
    best = tune(study, TINY)
    assert best["object"]["unlink"] == {} and best["object"]["rayleigh"] in TINY.grids["rayleigh"]
    best["object"]["rayleigh"] = {"rank": 1}  # so that the default stands beside it
    entries, attacks = measure(study, TINY, best), attack(study, TINY, best)
    assert [(e["phase"], e["method"]) for e in entries] == [
        ("tuned", "rayleigh"),
        ("published", "rayleigh"),
        ("robust", "rayleigh"),
        ("tuned", "unlink"),
    ]
    assert {(a["method"], (a["setting"] or {}).get("robust")) for a in attacks} == {
        ("nothing erased", None), ("rayleigh", None), ("unlink", None), ("rayleigh", True)
    }  # fmt: skip
    for e in entries:
        assert (
            set(e["before"]) == set(e["after"]) == {"forget", "synonym", "in", "out", "neighbour"}
        )
        assert e["drift"] > 0 and e["frechet"] > 0 and e["norm"] > 0
    again = Study(study.journal.path.parent, steps=2)
    again.pipe = None  # nothing may be drawn
    assert measure(again, TINY, best) == entries and attack(again, TINY, best) == attacks
    numbers = {k: numbers_of(entries, "object") for k in ("object", "family", "artist", "ten")}
    plan = replace(TINY, test={"object": ("cat",)})
    with pytest.raises(KeyError):
        study_page(plan, best, entries, attacks, tmp_path)  # goals want every kind
    assert len(goals(numbers)) == 8 and OWN in method_table(numbers["object"])


def test_settings_of_an_earlier_page_replace_the_search(tmp_path):
    page = tmp_path / "page.json"
    page.write_text(json.dumps({"settings": {"object": {"unlink": {"rank": 2}}}}))
    assert settings_of(page, TINY) == {"object": {"rayleigh": {}, "unlink": {"rank": 2}}}
    page.write_text("[]")
    for bad in (page, tmp_path / "none.json"):
        with pytest.raises(ValueError, match="expected the JSON of a method study"):
            settings_of(bad, TINY)


def test_scores_are_what_the_pictures_show(study):
    """Nothing erased changes nothing; drift and hits agree with the pictures themselves."""
    t = target("object", "cat")
    roles = ("forget", "in")
    base, same = study.original(t, 0, roles), study.measure(t, None, 0, roles)
    assert np.array_equal(base["pixels"], same["pixels"]) and len(base["pixels"]) == len(t.kept_in)
    entry = study.score(Job("drift", "unlink", {}, t, 1), roles)
    erasure = study.make("unlink", {}, t)
    now = study.measure(t, erasure, 0, roles)
    drift = np.abs(base["pixels"].astype(float) - now["pixels"].astype(float)).mean() / 255
    assert entry["drift"] == pytest.approx(drift)
    assert entry["after"] == {r: pytest.approx(np.mean(v)) for r, v in now["hits"].items()}
    assert entry["before"] == {r: pytest.approx(np.mean(v)) for r, v in base["hits"].items()}
    assert not study.live.erasures


def test_another_default_is_another_measurement(monkeypatch):
    job = Job("tuned", "unlink", {}, target("object", "cat"), 1)
    keys = {
        job.key,
        replace(job, count=2).key,
        replace(job, steps=3).key,
        replace(job, setting={"rank": 2}).key,
    }
    monkeypatch.setitem(METHODS, "unlink", replace(METHODS["unlink"], strength=2.0))
    assert len({*keys, job.key}) == 5


def _rows(**changes):
    good = {"harmonic": 0.99, "null_change": 0.001}
    return {OWN: good | changes, "uce": {"harmonic": 0.5, "null_change": 1.0}}


def test_goals_are_met_only_when_met():
    kinds = {k: _rows() for k in ("object", "family", "artist", "ten")}
    assert all(g.met for g in goals(kinds)) and len(goals(kinds)) == 8
    worse = kinds | {"family": _rows(harmonic=0.4, null_change=0.02)}
    missed = [g.what for g in goals(worse) if not g.met]
    assert missed == [
        "harmonic mean, family", "first of all methods, family", "change of the empty prompt"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the default's own row"):
        goals({k: {"uce": {}} for k in kinds})


def test_attack_table_counts_what_came_back():
    rows = [{"method": "uce", "setting": {}, "plain": 0.1, "attacked": a} for a in (0.9, 0.2)]
    assert attack_table(rows).splitlines()[-1] == "| uce | 0.10 | 0.55 | 1 of 2 |"


def test_the_page_is_of_its_numbers(tmp_path, capsys):
    """Entries of every kind, told on one page with the picture beside it."""
    before = {"out": 1.0, "in": 1.0, "neighbour": 1.0, "forget": 1.0, "synonym": 1.0, "plain": 0.25}
    entry = {
        "phase": "tuned", "method": "rayleigh", "setting": {}, "name": "cat", "before": before,
        "after": before | {"forget": 0.0, "synonym": 0.0}, "drift": 0.01, "frechet": 2.0,
        "null_change": 0.0, "norm": 3.0, "revivable": 0.5,
    }  # fmt: skip
    rival = entry | {"method": "uce", "after": before | {"forget": 0.5, "synonym": 0.5}}
    kinds = {
        "object": ("cat",),
        "family": ("weapon",),
        "artist": ("noto",),
        "ten": ("ten objects",),
    }
    entries = [e | {"kind": k} for k in kinds for e in (entry, rival)]
    plan = replace(whole_plan(3, 1), test=kinds)
    best = {k: {"rayleigh": {}, "uce": {"ridge": 0.1}} for k in ("object", "family", "artist")}
    attacks = [{"method": "rayleigh", "setting": {}, "plain": 0.0, "attacked": 1.0}]
    assert study_page(plan, best, entries, attacks, tmp_path) == 0
    text = (tmp_path / "method-study.md").read_text("utf-8")
    assert "Generated by `python -m lab.method_study --seeds 3 --tune-seeds 1`" in text
    assert f"| {OWN} | 1.000 | 0.000 | 0.000 | 1.000 | 1.000 | 1.000 | 0.010 | 2.00 |" in text
    assert "| uce | 0.667 | 0.500 |" in text and "| uce | ridge = 0.1 | ridge = 0.1 |" in text
    assert "in the original: cat 0.25." in text and "1 of 1" in text and "{" not in text
    data = json.loads((tmp_path / "method-study.json").read_text("utf-8"))
    assert data["numbers"]["object"]["uce"]["harmonic"] == pytest.approx(2 / 3)
    assert (tmp_path / "method-study.png").read_bytes().startswith(b"\x89PNG")
