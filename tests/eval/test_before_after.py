"""Before and after: what is drawn, counted and shown."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import Scene
from erase_sd.emoji.subjects import Subject, concept_in
from erase_sd.emoji.world import load_world
from erase_sd.eval.before_after import Drawing, compare, subjects_for
from erase_sd.eval.sheet import Row, before_after_sheet, image_grid


class Renderer:
    """Stands in for a pipeline: draws the world's object that a prompt names, posed by the seed."""

    def __init__(self):
        self.instead, self.calls = {}, []
        self.name_or_path = ""

    def set_progress_bar_config(self, **options):
        pass

    def __call__(self, prompts, *, generator, num_inference_steps, guidance_scale):
        self.calls.append((tuple(prompts), num_inference_steps, guidance_scale))
        images = []
        for prompt, noise in zip(prompts, generator, strict=True):
            name = concept_in(prompt).name
            index = load_world().names.index(self.instead.get(name, name))
            images.append(
                Image.fromarray(render(Scene((index,), 0, "white", ("",), noise.initial_seed())))
            )
        return SimpleNamespace(images=images)


@pytest.fixture
def found():
    """A cat replaced by a car, a dog left alone, and something that no judge knows."""
    pipe = Renderer()
    subjects = [
        Subject("cat", ("a cat", "a picture of a cat"), "cat", True),
        Subject("a feeling", ("the cat of my dreams",), None, True),
        Subject("dog", ("a dog",), "dog", False),
    ]
    drawing = Drawing(images=4, steps=7, guidance=2.5)
    scores, sheet = compare(
        pipe,
        subjects,
        lambda: pipe.instead.update(cat="car"),
        judge="judge",
        drawing=drawing,
        title="t",
    )
    return pipe, scores, sheet


def test_a_detector_counts_before_and_after(found):
    _, scores, _ = found
    cat, feeling, dog = scores["subjects"]
    assert (cat["before"], cat["after"]) == (1.0, 0.0) and (dog["before"], dog["after"]) == (
        1.0,
        1.0,
    )
    assert "before" not in feeling and "after" not in feeling
    assert scores["forget"] == {"before": 1.0, "after": 0.0}  # of those that can be counted
    assert scores["retain"] == {"before": 1.0, "after": 1.0}
    assert scores["images"] == 12 and scores["judge"] == "judge"


def test_prompts_take_turns_at_equal_seeds(found):
    pipe, scores, _ = found
    assert pipe.calls[0] == pipe.calls[1]
    prompts, steps, guidance = pipe.calls[0]
    assert prompts[:4] == ("a cat", "a picture of a cat") * 2 and prompts[-1] == "a dog"
    assert (steps, guidance) == (7, 2.5) == (scores["steps"], scores["guidance"])


def test_pixels_are_compared_pair_by_pair(found):
    cat, _, dog = found[1]["subjects"]
    world = load_world().names
    want = []
    for seed in range(4):
        a, b = (
            render(Scene((world.index(n),), 0, "white", ("",), seed)).astype(float)
            for n in ("cat", "car")
        )
        want.append(np.abs(a - b).mean() / 255)
    assert cat["pixel_change"] == pytest.approx(np.mean(want))
    assert dog["pixel_change"] == 0


def test_without_a_judge_nothing_is_counted():
    pipe = Renderer()
    subjects = [Subject("cat", ("a cat",), "cat", True)]
    scores, _ = compare(pipe, subjects, lambda: None, judge=None, drawing=Drawing(images=1))
    assert (
        scores["judge"] is None and "forget" not in scores and "before" not in scores["subjects"][0]
    )
    for wrong in ([], subjects):
        with pytest.raises(ValueError, match="expected subjects and images"):
            compare(pipe, wrong, lambda: None, judge=None, drawing=Drawing(images=0))


def test_the_sheet_shows_three_of_each_before_and_after(found):
    pipe, _, sheet = found
    first = Image.fromarray(render(Scene((load_world().names.index("cat"),), 0, "white", ("",), 0)))
    big = np.asarray(first.resize((112, 112), Image.Resampling.BICUBIC))
    left, top = 16 + 150, 16 + 34 + 26 + 28
    assert np.array_equal(np.asarray(sheet)[top : top + 112, left : left + 112], big)
    right = left + 3 * (112 + 6) + 24
    after = np.asarray(sheet)[top : top + 112, right : right + 112]
    assert not np.array_equal(after, big) and (after != 255).any()


def test_bystanders_never_include_what_goes():
    subjects = subjects_for(["cat", "a photo of a puppy", "set of things"])
    assert [s.target for s in subjects if s.forget] == ["cat", "dog", None]
    kept = [s.target for s in subjects if not s.forget]
    assert len(kept) == 8 and not {"cat", "dog"} & set(kept)
    assert {c.family for c in load_world().concepts if c.name in kept} >= {
        "animal",
        "food",
        "vehicle",
    }


def test_a_long_list_shows_its_first_four_and_a_sentence_stays_one():
    subjects = subjects_for(["cat", "dog", "tiger", "fox", "bear"], bystanders=2)
    assert [s.label for s in subjects if s.forget] == ["cat", "dog", "tiger", "fox"]
    assert not {"bear"} & {s.label for s in subjects}
    (sentence, *_) = subjects_for(["a cat on the moon"])
    assert sentence.prompts == ("a cat on the moon",) and sentence.target == "cat"


def test_the_longest_name_wins():
    assert concept_in("an ice cream").name == "ice cream"
    assert concept_in("A Bengal Tiger").name == "tiger" and concept_in("catalogue") is None


def test_sheets_hold_every_image():
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = before_after_sheet([Row("cat", "to forget", (red,) * 3, (blue,) * 3)], title="x")
    colours = {c: n for n, c in sheet.getcolors(2**24)}
    assert colours[(255, 0, 0)] == colours[(0, 0, 255)] == 3 * 112 * 112
    assert image_grid([red] * 5, 2, cell=10).size == (20, 30)
