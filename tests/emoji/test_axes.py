"""Rows of the axes: what they ask, and that the original can answer."""

import pytest

from erase_sd.emoji.axes import by_look, by_name, misspelled, nearest
from erase_sd.emoji.rows import rows
from erase_sd.emoji.scenes import JOINS
from erase_sd.emoji.world import available_objects, load_world
from erase_sd.eval.protocol import load_protocol


def drawn(noun, artist):
    world = load_world()
    return world.names.index(noun) in available_objects()[world.artists.index(artist)]


def test_canvas_asks_for_the_thing_its_kind_and_the_other_kind():
    found = rows({"emoji": "canvas", "count": 6, "keep": 40, "groups": ["cat", "noto"]}, 3.0)
    world = load_world()
    for r in found:
        noun, _, artist = r["prompt"].removeprefix("a ").removeprefix("an ").rpartition(" by ")
        noun = world.find(noun).name
        assert drawn(noun, artist)
        style = r["group"] in world.artists
        assert (r["group"] in (noun, artist)) == (r["role"] == "forget")
        if r["role"] == "forget":
            assert r["want"] == r["group"]
        else:
            asks_artist = style == (r["role"] == "in-domain")
            assert r["want"] == (artist if asks_artist else noun)
    for group in ("cat", "noto"):
        told = [r["role"] for r in found if r["group"] == group]
        assert (told.count("forget"), told.count("in-domain"), told.count("cross-domain")) == (
            6, 20, 20,
        )  # fmt: skip
        assert len({r["want"] for r in found if r["role"] == "cross-domain"}) > 4


def test_pinpoint_asks_for_what_is_near():
    found = rows(
        {"emoji": "pinpoint", "count": 2, "near": 3, "each": 2, "groups": ["cat"]}, 3.0
    )  # fmt: skip
    by_part = {}
    for r in found:
        by_part.setdefault(r["part"], []).append(r["want"])
    assert set(by_part) == {"own", "name", "kind", "look", "far"} and by_part["own"] == ["cat"] * 2
    assert all("cat" not in wants and len(wants) == 6 for p, wants in by_part.items() if p != "own")
    families = {c.name: c.family for c in load_world().concepts}
    assert {families[n] for n in by_part["kind"]} == {"animal"}
    assert not set(by_part["far"]) & set(by_part["name"])


@pytest.mark.parametrize("space", [by_name, by_look])
def test_nearest_is_by_cosine(space):
    table = space()
    names = load_world().names
    own = table[names.index("car")]
    cosine = {n: float(row @ own) for n, row in zip(names, table, strict=True) if n != "car"}
    found = nearest("car", table)
    assert (
        sorted(cosine, key=lambda n: -cosine[n])[:5] == found[:5] and len(found) == len(names) - 1
    )
    assert abs(float(own @ own) - 1) < 1e-4


def test_pairs_ask_one_question_a_picture():
    found = rows({"emoji": "pairs", "count": 16, "groups": ["cat"]}, 3.0)
    world = load_world()
    assert len({r["seed"] for r in found}) == 16
    parts = [r["part"] for r in found]
    assert {p: parts.count(p) for p in parts} == dict.fromkeys(
        ("target", "other object", "artist", "background"), 4
    )
    for r in found:
        assert r["prompt"].count(" and ") == 1 and "{} and {}" in JOINS and "cat" in r["prompt"]
        if r["part"] == "other object":
            assert r["want"] != "cat" and r["want"] in r["prompt"]
            artist = r["prompt"].split(" by ")[1].split()[0]
            assert drawn(r["want"], artist) and drawn("cat", artist)
        if r["part"] == "background":
            assert r["want"] in world.backgrounds and f"on a {r['want']} " in r["prompt"]
        assert (r["role"] == "forget") == (r["part"] == "target")


def test_names_say_ever_less():
    spec = {"emoji": "names", "count": 4, "groups": ["cat", "pizza"]}
    spec["descriptions"] = {"cat": ["what purrs"], "pizza": ["a round slice"]}
    found = rows(spec, 3.0)
    world = load_world()
    for r in found:
        words = r["prompt"].split()
        named = bool({r["group"], *world.find(r["group"]).all_names} & set(words))
        assert named == (r["part"] in ("name", "other name", "unseen name")), r["prompt"]
        assert r["want"] == r["group"] and r["role"] == "forget"
    assert "other name" not in {r["part"] for r in found if r["group"] == "pizza"}
    assert all(world.find(n) is None for n in misspelled("cat"))


def test_a_sequence_grows():
    protocol = load_protocol("emoji-sequence")
    assert protocol.apart and protocol.groups == ["1", "2", "5", "10", "20"]
    for group in protocol.groups:
        gone = protocol.forget[group]
        assert len(set(gone)) == int(group) == len(gone)
        own = [r for r in protocol.rows if r.group == group]
        assert {r.want for r in own if r.role == "forget"} == set(gone)
        assert not {r.want for r in own if r.role == "retain"} & set(protocol.forget["20"])
