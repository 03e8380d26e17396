"""The ladder of attacks: what it counts, what it spares, what it says."""

import math

import pytest

from erase_sd.algebra.methods import DEFAULT
from erase_sd.emoji.judge import judge
from lab.ladder import climb, goals, ladder_table, measure, share
from lab.rungs import NAMES, OWN, ROBUST, RUNGS, Defence, Rung, defences
from lab.study.measure import Study, pictures_of
from lab.study.targets import target

STRONG = RUNGS[5]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("ladder"), steps=6)


def planted(**shares):
    """Cells that are 0 everywhere, but for some rungs of the default and of the robust mode."""
    cells = {(r.name, d): {"cat": 0.0, "car": 0.0} for r in RUNGS for d in (DEFAULT, ROBUST)}
    for name, values in shares.items():
        rung = next(r for r in RUNGS if r.name.startswith(name.replace("_", " ")))
        cells[rung.name, DEFAULT] = dict(zip(("cat", "car"), values, strict=True))
    return cells


def test_what_a_weaker_attack_did_counts_for_the_stronger_one():
    cells = planted(five_free=(0.8, 0.1), the_same=(None, 0.3))
    mean, spared = share(cells, STRONG, DEFAULT)
    assert mean == pytest.approx(0.55) and spared
    assert share(cells, STRONG, ROBUST) == (0.0, False)
    lines = ladder_table(cells, [DEFAULT, ROBUST]).splitlines()
    assert "| ≥ 0.55 | 0.00 |" in lines[2 + RUNGS.index(STRONG)]


def test_a_concept_without_other_names_counts_nowhere():
    cells = planted(other=(math.nan, 0.4))
    assert share(cells, RUNGS[1], DEFAULT)[0] == pytest.approx(0.4)


def test_goals_are_missed_where_they_are():
    assert all(g.met for g in goals(planted()))
    missed = [g.what for g in goals(planted(five_tokens=(0.1, 0.3))) if not g.met]
    assert missed == [f"{DEFAULT}: {RUNGS[3].name}"]


def test_a_cell_is_drawn_once_and_an_erased_cat_is_gone(study, monkeypatch):
    cat, own = target("object", "cat"), RUNGS[0]
    erased = defences({}, None)[-2]
    assert erased == Defence(DEFAULT, DEFAULT, {})
    before = climb(study, own, Defence("nothing erased"), cat, 4)
    after = climb(study, own, erased, cat, 4)
    assert own.name == OWN and before >= 0.75 and after <= 0.25
    monkeypatch.setattr(study, "draw", None)  # the journal has it
    assert climb(study, own, erased, cat, 4) == after


def test_attacks_run_and_the_best_start_counts(study, monkeypatch):
    rungs = (Rung("text", NAMES), Rung("weights", "words", "tokens:1", starts=2))
    monkeypatch.setattr("lab.ladder.RUNGS", rungs)
    cells = measure(study, [Defence("nothing erased")], [target("object", "cat")], 2)
    assert cells[NAMES, "nothing erased"]["cat"] >= 0.5
    assert 0 <= cells["words", "nothing erased"]["cat"] <= 1


@pytest.mark.parametrize("kind,name", [("object", "cat"), ("family", "weapon"), ("artist", "noto")])
def test_an_attackers_pictures_are_of_the_concept(kind, name):
    t = target(kind, name)
    seen = judge(pictures_of(t, 8))
    shown = seen.artist if kind == "artist" else seen.top
    assert sum(s in (t.forget if kind != "artist" else (name,)) for s in shown) >= 7
