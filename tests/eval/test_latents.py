"""Probes that go past the prompt: what is drawn comes from where it is said to."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from erase_sd.emoji.judge import judge
from erase_sd.eval.attacks import attacked
from erase_sd.eval.attacks.latents import middle
from erase_sd.eval.attacks.target import Target
from erase_sd.eval.rows import Row
from erase_sd.eval.scores import instead, shares
from erase_sd.pipelines.live import LiveErasure


def drawn(pipe, attack, *, prompt="a photo of a cat", paused=None, seeds=(0, 1, 2)):
    told = {} if paused is None else {"paused": paused}
    with attacked(attack, Target(pipe, "cat", prompt, **told)) as draw:
        return draw(list(seeds), 6, 3.0)


def pixels(images):
    return np.stack([np.asarray(i, np.float32) for i in images])


def test_noise_leads_elsewhere_and_is_seeded(pipe):
    scheduler = pipe.scheduler
    first, again = drawn(pipe, "noise"), drawn(pipe, "noise")
    assert (pixels(first) == pixels(again)).all() and pipe.scheduler is scheduler
    noise = [torch.Generator().manual_seed(s) for s in range(3)]
    plain = pipe(["a photo of a cat"] * 3, generator=noise, num_inference_steps=6,
                 guidance_scale=3.0).images  # fmt: skip
    assert np.abs(pixels(first) - pixels(plain)).mean() > 5
    assert "cat" in judge(first).top


def test_completion_begins_with_the_original_and_ends_with_the_erased(pipe, cat):
    """With nothing erased it is the original's picture; erased, it is nearer to it than usual."""
    noise = [torch.Generator().manual_seed(s) for s in range(3)]
    plain = pipe(["a photo of a cat"] * 3, generator=noise, num_inference_steps=6,
                 guidance_scale=3.0).images  # fmt: skip
    unerased = drawn(pipe, "completion")
    assert np.abs(pixels(unerased) - pixels(plain)).max() <= 2
    live = LiveErasure.of(pipe)
    live.add(cat)
    calls = []

    @contextmanager
    def paused():
        calls.append(1)
        with live.paused():
            yield

    helped = drawn(pipe, "completion", paused=paused)
    alone = drawn(pipe, "completion")
    live.take()
    assert calls == [1]
    far = [np.abs(pixels(x) - pixels(plain)).mean() for x in (helped, alone)]
    assert 0.5 < far[0] < far[1]


def test_a_masked_picture_keeps_its_border(pipe, cat):
    noise = [torch.Generator().manual_seed(s) for s in range(3)]
    plain = pipe(["a photo of a cat"] * 3, generator=noise, num_inference_steps=6,
                 guidance_scale=3.0).images  # fmt: skip
    live = LiveErasure.of(pipe)
    live.add(cat)
    found = drawn(pipe, "masked", paused=live.paused)
    live.take()
    change = np.abs(pixels(found) - pixels(plain)).mean((0, 3))
    border = np.concatenate([change[:6].ravel(), change[-6:].ravel()])
    assert border.mean() < 0.4 * change[16:48, 16:48].mean() and change[20:44, 20:44].mean() > 5
    assert middle(torch.zeros(1, 4, 16, 16)).float().mean() == pytest.approx((10 / 16) ** 2)


@pytest.mark.parametrize("attack", ["noise", "completion", "masked"])
def test_probes_take_no_steps(pipe, attack):
    with pytest.raises(ValueError, match=f"{attack} takes no steps, got 3"):
        drawn(pipe, f"{attack}:3")


def row(i, role, want, part=""):
    return Row(f"r{i}", "cat", role, "a cat", want, i, 3.0, part=part)


def test_shares_are_by_part():
    rows = [row(0, "forget", "cat", "own"), row(1, "retain", "dog", "near"),
            row(2, "retain", "owl", "near")]  # fmt: skip
    labels = [{"labels": ["cat"]}, {"labels": ["dog", "noto"]}, {"labels": ["fox"]}]
    found = shares(rows, labels, lambda r: r.part)
    assert {k: v["mean"] for k, v in found.items()} == {"own": 1.0, "near": 0.5}


def test_what_appears_instead_is_of_the_forgotten_alone():
    rows = [row(0, "forget", "cat"), row(1, "forget", "cat"), row(2, "retain", "owl")]
    labels = [{"labels": [], "top": t, "confidence": c} for t, c in
              (("dog", 0.9), ("fox", 0.5), ("owl", 0.1))]  # fmt: skip
    found = instead(rows, labels)
    assert found["confidence"]["mean"] == pytest.approx(0.7)
    assert found["most common"] == {"dog": 0.5, "fox": 0.5}


def test_the_judge_sees_every_object():
    from PIL import Image

    from erase_sd.emoji.judge import EmojiJudge
    from erase_sd.emoji.render import render
    from erase_sd.emoji.scenes import Scene
    from erase_sd.emoji.world import load_world

    names = load_world().names
    pair = Scene((names.index("pizza"), names.index("car")), 0, "blue", ("", ""), 3)
    (seen,) = EmojiJudge(every=True)([Image.fromarray(render(pair))])
    assert {"pizza", "car", "noto", "blue"} == set(seen["labels"])
    assert seen["top"] in ("pizza", "car") and seen["confidence"] > 0.9
    assert EmojiJudge(every=True).about != EmojiJudge().about
