"""The world, its scenes and its pictures."""

import numpy as np
import pytest

from erase_sd.emoji.render import load_sprites, render
from erase_sd.emoji.rows import rows
from erase_sd.emoji.scenes import Scene, caption, sample_scene
from erase_sd.emoji.world import available_objects, load_world

world = load_world()


class TestWorld:
    def test_is_as_large_as_promised(self):
        families = {c.family for c in world.concepts}
        assert len(world.concepts) >= 60 and len(world.artists) == 5 and len(world.backgrounds) >= 8
        assert {
            "animal",
            "food",
            "vehicle",
            "plant",
            "instrument",
            "building",
            "weapon",
            "alcohol",
        } <= families
        assert (
            len(world.family("weapon")) >= 4
            and len(world.family("alcohol")) >= 3
            and len(world.family("animal")) >= 8
        )

    def test_nouns_are_unambiguous(self):
        nouns = [n for c in world.concepts for n in c.all_names]
        assert len(set(nouns)) == len(nouns)
        assert not set(nouns) & {c.family for c in world.concepts}

    def test_enough_names_are_held_out_of_the_generator(self):
        assert sum(bool(c.held_out) for c in world.concepts) >= 20

    def test_sprites(self):
        sprites = load_sprites()
        assert len(sprites) >= 5 * len(world.concepts) - 5
        assert all(s.size == (96, 96) for s in sprites.values())
        assert all(len(o) >= 60 for o in available_objects())

    def test_a_seed_names_a_data_set(self):
        one, two = (sample_scene(np.random.default_rng(5)) for _ in range(2))
        assert one == two and np.array_equal(render(one), render(two))
        assert not np.array_equal(render(one), render(sample_scene(np.random.default_rng(6))))

    def test_captions_tell_the_truth(self):
        rng = np.random.default_rng(0)
        for _ in range(500):
            scene = sample_scene(rng)
            text = caption(scene, rng, held_out=False, family=0)
            for o in scene.objects:
                assert any(n in text for n in world.concepts[o].names), text
            for artist in world.artists:
                assert artist not in text.split() or artist == world.artists[scene.artist]
            held_out = {n for c in world.concepts for n in c.held_out}
            assert not any(
                f" {n} " in f" {text.replace(',', '')} " for n in held_out if " " not in n
            ), text

    def test_background_is_where_the_object_is_not(self):
        for name, colour in world.backgrounds.items():
            image = render(Scene((0,), 0, name, ("small",), 3))
            corners = image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
            assert (np.abs(corners - np.array(colour)).max(1) <= 12).sum() >= 3


def test_what_an_artist_drew_is_what_the_archive_holds():
    """By the names in the archive and by the sprites themselves."""
    drawn = load_sprites()
    for artist, objects in enumerate(available_objects()):
        assert set(objects) == {o for a, o in drawn if a == artist}
        assert list(objects) == sorted(objects)


def test_rows_are_plain_fields_with_the_protocols_guidance():
    spec = {"emoji": "objects", "count": 3, "keep": 4, "groups": {"cat": ["cat"]}}
    made = rows(spec, 2.5)
    assert {r["guidance"] for r in made} == {2.5}
    forget = [r for r in made if r["role"] == "forget"]
    assert [r["prompt"] for r in forget] == [
        "a photo of a cat",
        "a photo of a kitten",
        "a photo of a kitty",
    ]
    assert {r["want"] for r in forget} == {"cat"}
    retain = [r["want"] for r in made if r["role"] == "retain"]
    animals = {c.name for c in world.family("animal")}
    assert len(retain) == 4 and "cat" not in retain and len(animals & set(retain)) == 1  # a quarter


def test_a_paraphrase_asks_under_another_name():
    spec = {
        "emoji": "attacks",
        "count": 2,
        "groups": ["cat"],
        "attacks": ["paraphrase", "prompt:3"],
    }
    made = {r["id"]: r for r in rows(spec, 3.0)}
    assert made["cat-own-000"]["prompt"] == "a photo of a cat"
    assert {made[f"cat-paraphrase-00{i}"]["prompt"] for i in (0, 1)} == {
        "a photo of a kitten",
        "a photo of a kitty",
    }
    assert made["cat-prompt.3-001"]["attack"] == "prompt:3" and all("/" not in i for i in made)


def test_artists_ask_three_questions():
    spec = {"emoji": "artists", "count": 2, "keep": 4, "groups": ["noto"]}
    made = rows(spec, 3.0)
    roles = [r["role"] for r in made]
    assert (
        roles.count("forget") == 2 and roles.count("in-domain") == roles.count("cross-domain") == 2
    )
    for r in made:
        assert ("by noto" in r["prompt"]) == (r["role"] == "forget")


@pytest.mark.parametrize(
    "spec,error",
    [
        ({"emoji": "cars"}, "emoji rows of objects"),
        (
            {"emoji": "attacks", "groups": ["unicorn"], "attacks": [], "count": 1},
            "has no 'unicorn'",
        ),
    ],
)
def test_rows_of_another_world_are_refused(spec, error):
    with pytest.raises(ValueError, match=error):
        rows(spec, 1.0)
