import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from erase_sd.emoji.world import load_world
from erase_sd.eval.before_after import subjects_for
from erase_sd.eval.sheet import Row, before_after_sheet, image_grid
from erase_sd.eval.study import (
    ARTISTS,
    FAMILIES,
    GRIDS,
    OBJECTS,
    TUNE_ARTISTS,
    TUNE_FAMILIES,
    TUNE_OBJECTS,
    target,
)  # fmt: skip
from erase_sd.eval.study_report import attack_table, frechet, gates, summary
from erase_sd.methods import METHODS


def test_frechet_agrees_with_scipy_and_is_zero_on_itself():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(80, 5)), rng.normal(1, 2, size=(60, 5))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(want)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_the_study_tunes_every_method_on_concepts_it_does_not_test():
    assert set(GRIDS) == set(METHODS)
    assert not set(TUNE_OBJECTS) & set(OBJECTS) and not set(TUNE_ARTISTS) & set(ARTISTS)
    assert not set(TUNE_FAMILIES) & set(FAMILIES)
    tuned_families = {c.name for f in TUNE_FAMILIES for c in load_world().family(f)}
    assert not tuned_families & set(OBJECTS)
    assert len(OBJECTS) >= 12 and len(FAMILIES) == 2 and len(ARTISTS) == 2


@pytest.mark.parametrize(
    "kind,name", [("object", "cat"), ("family", "weapon"), ("family", "alcohol"), ("artist", "noto")]
)
def test_targets_keep_their_promises(kind, name):
    t = target(kind, name)
    assert t == target(kind, name)
    assert not set(t.kept_out) & set(t.retain) and not set(t.neighbours) & set(t.retain)
    assert set(t.kept_in) <= set(t.retain)
    assert not set(t.probes) & set(t.forget) and not set(t.synonyms) & set(t.forget)
    if kind == "family":
        assert set(t.forget) == {c.name for c in load_world().family(name)}


def test_summary_is_the_harmonic_mean_of_forgotten_and_retained():
    entry = {"before": {"out": 0.8}, "after": {"forget": 0.2, "synonym": 0.0, "out": 0.4}}
    s = summary(entry)
    assert s["forgotten"] == pytest.approx(0.9) and s["retained"] == pytest.approx(0.5)
    assert s["harmonic"] == pytest.approx(2 * 0.9 * 0.5 / 1.4)


def test_bystanders_never_include_what_goes():
    subjects = subjects_for(["cat", "a photo of a puppy", "set of things"])
    assert [s.target for s in subjects if s.forget] == ["cat", "dog", None]
    kept = [s.target for s in subjects if not s.forget]
    assert len(kept) == 8 and not {"cat", "dog"} & set(kept)
    assert {c.family for c in load_world().concepts if c.name in kept} >= {"animal", "food", "vehicle"}


def test_sheets_hold_every_image():
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = before_after_sheet([Row("cat", "to forget", (red,) * 3, (blue,) * 3)], title="x")
    colours = {c: n for n, c in sheet.getcolors(2**24)}
    assert colours[(255, 0, 0)] == colours[(0, 0, 255)] == 3 * 112 * 112
    assert image_grid([red] * 5, 2, cell=10).size == (20, 30)


def test_gates_say_met_only_when_met():
    good = {"harmonic": 0.99, "null_change": 0.001}
    rows = {"rayleigh (the default)": good, "uce": {"harmonic": 0.5, "null_change": 1.0}}
    kinds = {k: rows for k in ("object", "family", "artist", "ten")}
    assert not any("missed" in line for line in gates(kinds))
    worse = kinds | {"family": rows | {"rayleigh (the default)": {"harmonic": 0.4, "null_change": 0.02}}}
    assert sum("missed" in line for line in gates(worse)) == 3  # its value, its place, the empty prompt


def test_attack_table_counts_what_came_back():
    rows = [{"method": "uce", "setting": {}, "plain": 0.1, "attacked": a} for a in (0.9, 0.2)]
    assert attack_table(rows)[-1] == "| uce | 0.10 | 0.55 | 1 of 2 |"


def test_a_prompt_attack_brings_back_what_was_never_erased(pipe):
    """On the model as it is the attack finds the concept; a few steps move its loss the right way."""
    import torch

    from erase_sd.emoji.render import available_objects, render
    from erase_sd.emoji.world import Scene
    from erase_sd.eval.attack import prompt_attack

    cat = load_world().names.index("cat")
    artist = next(a for a in range(5) if cat in available_objects()[a])
    seen = [Image.fromarray(render(Scene((cat,), artist, "white", ("",), i))) for i in range(4)]
    before = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
    first = prompt_attack(pipe, seen, iterations=0, batch=2)
    states = prompt_attack(pipe, seen, iterations=3, batch=2)
    assert states.shape == (1, 77, pipe.text_encoder.config.hidden_size) and torch.isfinite(states).all()
    assert torch.equal(states[:, 0], first[:, 0])  # BOS comes before the free tokens
    assert (states[:, 1:] - first[:, 1:]).norm() > 0
    assert torch.equal(prompt_attack(pipe, seen, iterations=3, batch=2), states)  # seeded
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in pipe.unet.named_parameters())


def test_fine_tuning_counts_steps_and_puts_the_weights_back(pipe):
    import torch

    from erase_sd.emoji.render import available_objects, render
    from erase_sd.emoji.world import Scene
    from erase_sd.eval.attack import fine_tuning

    cat = load_world().names.index("cat")
    artist = next(a for a in range(5) if cat in available_objects()[a])
    seen = [Image.fromarray(render(Scene((cat,), artist, "white", ("",), i))) for i in range(2)]
    before = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
    moved = []

    def after_two_rounds():
        moved.append(max(float((p.detach() - before[n]).abs().max()) for n, p in pipe.unet.named_parameters()))
        return len(moved) == 3

    assert fine_tuning(pipe, seen, "a cat", after_two_rounds, every=1, batch=2) == 2
    assert moved[0] == 0 < moved[1] < moved[2]
    assert fine_tuning(pipe, seen, "a cat", lambda: False, every=1, limit=1, batch=2) is None
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())


def test_concept_prompts_find_words_that_mean_the_concept(encoder):
    """Ring-A-Bell's search gets nearer to its target than random words, and the same every time."""
    from erase_sd.eval.attack import concept_prompts

    pairs = [("a photo of a cat", "a photo of a thing"), ("a cat on blue", "a thing on blue")]
    options = dict(tokens=3, population=32, generations=12)
    found = concept_prompts(encoder, pairs, "a photo of a thing", **options)
    assert found == concept_prompts(encoder, pairs, "a photo of a thing", **options)
    assert len(found.split()) == 3
    vector = (encoder.encode([pairs[0][0]]).meanings - encoder.encode([pairs[0][1]]).meanings)[0]
    target = encoder.encode(["a photo of a thing"]).meanings[0] + 3 * vector
    words = encoder.encode([found, "with from under", "table of from"]).meanings
    distance = (words - target).norm(dim=1)
    assert distance[0] < distance[1:].min()
