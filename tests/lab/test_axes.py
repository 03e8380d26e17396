"""The axes: what each group erases and trains, one number an axis, where the default loses."""

import json
from dataclasses import replace

import pytest

from erase_sd.algebra.methods import DEFAULT
from erase_sd.eval.protocol import load_protocol
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.training import METHODS, TRAINERS
from lab.axes import PROTOCOLS, Rivals, Scope, quick, targets_of
from lab.study.axes_page import axes_of, axes_page, losses
from lab.study.grids import TRAINED
from lab.study.targets import TUNE_ARTISTS, TUNE_OBJECTS, target


def test_nothing_is_tuned_on_what_is_tested():
    tested = {g for n in PROTOCOLS for names in load_protocol(n).forget.values() for g in names}
    assert not tested & {*TUNE_ARTISTS}
    canvas = load_protocol("emoji-canvas")
    assert not set(canvas.groups) & {*TUNE_OBJECTS, *TUNE_ARTISTS}


def test_every_trained_method_has_a_grid_that_it_reads():
    assert tuple(TRAINED) == TRAINERS
    for method, grid in TRAINED.items():
        assert len(grid) > 1
        for setting in grid:
            METHODS[method].make_options(setting)


def test_what_a_group_erases_is_not_told_to_be_kept():
    canvas, sequence = load_protocol("emoji-canvas"), load_protocol("emoji-sequence")
    (noto,) = targets_of(canvas, "noto")
    assert noto.kind == "artist" and noto.forget == canvas.forget["noto"]
    (cat,) = targets_of(canvas, "cat")
    assert cat.kind == "object" and cat.forget == ("cat",) and len(cat.retain) == 20
    many = targets_of(sequence, "20")
    gone = {n for t in many for n in t.forget}
    assert gone == set(sequence.forget["20"]) and len(many) == 20
    assert not any(set(t.retain) & gone for t in many) and all(t.retain for t in many)
    assert any(set(target("object", n).retain) & gone for n in gone)  # it would be, otherwise


def test_a_quick_scope_is_small():
    protocol = quick().protocol("emoji-sequence")
    assert protocol.groups == ["1", "2"] and protocol.generation.steps == 4
    assert len(protocol.rows) == 4
    assert {r.part for r in quick().protocol("emoji-names").rows} == {
        "name",
        "other name",
        "unseen name",
        "misspelling",
        "description",
        "family",
    }
    assert {r.attack for r in quick().protocol("emoji-latents").rows} == {
        "",
        "noise",
        "completion",
        "masked",
    }
    assert Scope().protocol("emoji-names").hash == load_protocol("emoji-names").hash


def test_rivals_are_trained_once_and_one_after_another(tmp_path, embedded):
    rivals = Rivals(tmp_path, embedded)
    setting = {"steps": 1, "way": 1, "lr": 1e-3}
    cat, dog = (replace(target("object", n), retain=("key", "dog")) for n in ("cat", "dog"))
    first = rivals.after("esd-x", setting, [cat])
    made = (first / "erasure.json").stat().st_mtime_ns
    second = rivals.after("esd-x", setting, [cat, dog])
    assert rivals.after("esd-x", setting, [cat]) == first != second
    assert (first / "erasure.json").stat().st_mtime_ns == made and len(
        list(tmp_path.iterdir())
    ) == 2
    about = json.loads((second / "erasure.json").read_text())
    assert about["model"] == str(first) and about["forget"] == ["dog"]
    assert rivals.seconds(second) == about["seconds"] > 0
    files = [DiffusersFolder.open(p).denoiser_files[0].read_bytes() for p in (first, second)]
    assert files[0] != files[1]
    assert rivals.after("esd-x", setting | {"lr": 2e-3}, [cat]) != first


def told(mean):
    return {"mean": mean, "low": mean, "high": mean, "n": 4}


def numbers(ua, keep, parts):
    groups = {"UA": ua, "IRA": keep, "CRA": keep, "RA": keep}
    return {
        "accuracy": {"groups": {"cat": groups, "noto": groups, "20": groups}},
        "parts": {p: told(v) for p, v in parts.items()},
        "attacks": {"none": told(0.0), "noise": told(0.5), "masked": told(0.3)},
        "instead": {"confidence": told(0.8), "most common": {}},
        "frechet to the original": {"value": 1.0, "forgotten to the rest": 10 * ua},
        "about": {},
    }


def results(**variants):
    """The same numbers of each variant in every protocol."""
    protocol = {"name": "p", "hash": "h"}
    made = {n.replace("_", "-"): numbers(*v) for n, v in variants.items()}
    return {n: {"protocol": protocol, "variants": made} for n in PROTOCOLS}


NEAR = {"own": 0.1, "name": 0.9, "kind": 0.6, "look": 0.6, "far": 1.0}
REST = {"target": 0.2, "other object": 0.9, "artist": 0.7, "background": 0.8}


def test_an_axis_is_one_number_and_one_is_best():
    made = results(original=(0.45, 0.9, NEAR | REST), rayleigh=(0.9, 0.6, NEAR | REST))
    found = axes_of(made, "rayleigh")
    assert found == pytest.approx({
        "objects": 0.7, "artists": 0.7, "pinpoint": 0.7, "the rest": 0.8,
        "names": 1 - sum((NEAR | REST).values()) / 9, "probes": 0.6, "clean": 0.8, "world": 0.5,
        "sequence": 2 * 0.9 * 0.6 / 1.5,
    })  # fmt: skip


def test_where_the_default_loses_is_said():
    axes = {
        "original": {"a": 1.0, "b": 1.0},
        DEFAULT: {"a": 0.9, "b": 0.5},
        f"{DEFAULT}-robust": {"a": 0.95, "b": 0.9},
        "uce": {"a": 0.8, "b": 0.6},
        "esd-x": {"a": 0.1, "b": 0.7},
    }
    (line,) = losses(axes)
    assert line == "- **b**: 0.500, place 3; first is esd-x 0.700."
    first = losses({DEFAULT: {"a": 1.0}, "uce": {"a": 1.0}})
    assert "first" in first[0] and len(first) == 1


def test_the_page_names_every_method_and_protocol(tmp_path):
    made = results(
        original=(0.1, 0.9, NEAR | REST), rayleigh=(0.9, 0.6, NEAR | REST),
        esd_x=(0.5, 0.9, NEAR | REST),
    )  # fmt: skip
    found = {
        "closed": {"object": {"rayleigh": {}}, "artist": {"rayleigh": {"rank": 1}}},
        "trained": {"object": {"esd-x": {"lr": 1e-3}}, "artist": {"esd-x": {"lr": 1e-3}}},
        "seconds": {"esd-x": 12.3},
        "others": ["fox"],
    }
    # An interval is what the terminal's table needs; groups alone are not accuracy.
    for result in made.values():
        for v in result["variants"].values():
            v["accuracy"] |= {"UA": told(0.5), "RA": told(0.5)}
    path = axes_page(made, found, tmp_path, "python -m lab.axes")
    text = path.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert any(r.startswith("| rayleigh (the default) | 0.700") for r in rows)
    assert any(r.startswith("| esd-x | 12 | lr = 0.001") for r in rows)
    assert all(f"### {n}" in text for n in PROTOCOLS) and "after 20 objects" in text
    assert (tmp_path / "axes.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "axes.json").read_text())["axes"]["esd-x"]["objects"] > 0.7
    assert "**objects**: 0.700, place 2; first is esd-x 0.767" in text
