"""The shipped weights: what they are, and that they know their world."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.emoji import models
from erase_sd.emoji.clip import embed_images, embed_texts, load_clip
from erase_sd.emoji.judge import EmojiJudge, embed, judge, shipped
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import sample_scene
from erase_sd.emoji.world import load_world, with_article
from erase_sd.models.files import file_hash
from erase_sd.pipelines import generate
from erase_sd.pixels import to_unit

world = load_world()


class TestShippedWeights:
    def test_fit_the_package(self):
        size = sum(p.stat().st_size for p in models.WEIGHTS.rglob("*") if p.is_file())
        assert size <= 40e6
        assert not [
            p for p in models.WEIGHTS.rglob("*") if p.suffix in (".pt", ".bin", ".ckpt", ".pkl")
        ]
        for model in ("emoji-sd/unet", "emoji-sd/vae", "emoji-sd/text_encoder", "emoji-clip"):
            assert list((models.WEIGHTS / model).glob("*.safetensors"))

    def test_provenance(self):
        training = json.loads((models.WEIGHTS / "training.json").read_text())
        assert {"command", "seed", "plan", "hardware", "seconds"} <= set(training)
        text = (models.WEIGHTS / "ATTRIBUTION.md").read_text()
        for licence in ("Apache-2.0", "MIT", "CC-BY-4.0"):
            assert licence in text
        for artist in world.artists:
            assert artist in text.lower()

    def test_clip_tells_objects_apart(self, encoder):
        clip, tokenizer = load_clip()
        ids = torch.tensor([[1, 2, 3]])
        torch.testing.assert_close(
            clip.text_model(ids).last_hidden_state,
            encoder.towers[0].model(ids).last_hidden_state,
            atol=1e-5,
            rtol=1e-5,
        )
        rng = np.random.default_rng(5)
        scenes = [sample_scene(rng, pairs=0) for _ in range(300)]
        images = embed_images(clip, np.stack([render(s) for s in scenes]))
        names = embed_texts(clip, tokenizer, [f"a photo of {with_article(n)}" for n in world.names])
        truth = torch.tensor([s.objects[0] for s in scenes])
        assert ((images @ names.T).argmax(1) == truth).float().mean() > 0.8

    def test_judge_knows_renders_it_never_saw(self):
        rng = np.random.default_rng(31337)
        scenes = [sample_scene(rng, pairs=0) for _ in range(200)]
        seen = judge([Image.fromarray(render(s)) for s in scenes])
        assert (
            np.mean([t == world.names[s.objects[0]] for t, s in zip(seen.top, scenes, strict=True)])
            > 0.97
        )
        assert (
            np.mean([b == s.background for b, s in zip(seen.background, scenes, strict=True)])
            > 0.97
        )

    def test_generator_draws_what_it_is_told(self, pipe):
        names = world.names[::4]
        images = generate(
            pipe, [f"a photo of {with_article(n)}" for n in names], list(range(len(names)))
        )
        assert (
            np.mean([a == b for a, b in zip(judge(images).top, names, strict=True)]) > 0.6
        )  # chance is 1 in 69


def test_the_judge_as_a_detector_names_its_weights_and_what_it_sees():
    detector = EmojiJudge()
    assert detector.about == {"detector": "judge", "weights": file_hash(models.JUDGE)}
    rng = np.random.default_rng(8)
    images = [Image.fromarray(render(sample_scene(rng, pairs=0))) for _ in range(5)]
    seen = judge(images)
    told = [
        {"labels": [o, a], "background": b}
        for o, a, b in zip(seen.top, seen.artist, seen.background, strict=True)
    ]
    assert detector(images) == told


def test_judge_and_features_do_not_depend_on_the_batch():
    rng = np.random.default_rng(9)
    images = [Image.fromarray(render(sample_scene(rng))) for _ in range(7)]
    torch.testing.assert_close(
        judge(images, batch=2).objects, judge(images).objects, atol=1e-4, rtol=1e-4
    )
    assert np.allclose(embed(images, batch=3), embed(images), atol=1e-4)
    with torch.no_grad():
        x = to_unit(np.stack([np.asarray(i) for i in images]))
        assert np.allclose(embed(images), shipped().embed(x).numpy(), atol=1e-4)


def test_another_network_can_be_asked():
    def always(x):
        return tuple(torch.eye(n)[:1].expand(len(x), -1) for n in (len(world.names), 5, 8))

    seen = judge([Image.new("RGB", (64, 64))] * 2, network=always)
    assert seen.top == [world.names[0]] * 2 and seen.background == [list(world.backgrounds)[0]] * 2


def test_bytes_become_what_networks_read():
    x = to_unit(np.array([[[[0, 127, 255]]]], np.uint8))
    assert x.shape == (1, 3, 1, 1)
    assert x.flatten().tolist() == pytest.approx([-1, 127 / 127.5 - 1, 1])


def test_erasing_removes_the_concept_and_keeps_the_rest(pipe):
    kept = ("fox", "donut", "butterfly", "wine")
    prompts = ["a photo of a strawberry"] * 8 + [
        f"a photo of {with_article(k)}" for k in kept for _ in range(3)
    ]
    seeds = list(range(len(prompts)))
    before = judge(generate(pipe, prompts, seeds)).top
    pipe.erase("strawberry")
    after = judge(generate(pipe, prompts, seeds)).top

    def right(tops):
        return sum(
            t == k for t, k in zip(tops[8:], [k for k in kept for _ in range(3)], strict=True)
        )

    assert before[:8].count("strawberry") >= 6
    assert after[:8].count("strawberry") <= 2
    assert right(after) >= 0.7 * right(before) > 6
