import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.emoji import models
from erase_sd.emoji.render import available_objects, load_sprites, render
from erase_sd.emoji.world import Scene, caption, load_world, sample_scene, with_article
from erase_sd.eval.judge import judge

ROOT = Path(__file__).parent.parent
world = load_world()


class TestWorld:
    def test_is_as_large_as_promised(self):
        families = {c.family for c in world.concepts}
        assert len(world.concepts) >= 60 and len(world.artists) == 5 and len(world.backgrounds) >= 8
        assert {"animal", "food", "vehicle", "plant", "instrument", "building", "weapon", "alcohol"} <= families
        assert (
            len(world.family("weapon")) >= 4 and len(world.family("alcohol")) >= 3 and len(world.family("animal")) >= 8
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
            assert not any(f" {n} " in f" {text.replace(',', '')} " for n in held_out if " " not in n), text

    def test_background_is_where_the_object_is_not(self):
        for name, colour in world.backgrounds.items():
            image = render(Scene((0,), 0, name, ("small",), 3))
            corners = image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
            assert (np.abs(corners - np.array(colour)).max(1) <= 12).sum() >= 3


class TestShippedWeights:
    def test_fit_the_package(self):
        size = sum(p.stat().st_size for p in models.WEIGHTS.rglob("*") if p.is_file())
        assert size <= 40e6
        assert not [p for p in models.WEIGHTS.rglob("*") if p.suffix in (".pt", ".bin", ".ckpt", ".pkl")]
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
        from erase_sd.emoji.validate import check_clip

        clip, _ = models.load_clip()
        ids = torch.tensor([[1, 2, 3]])
        torch.testing.assert_close(
            clip.text_model(ids).last_hidden_state, encoder.towers[0].model(ids).last_hidden_state, atol=1e-5, rtol=1e-5
        )
        assert check_clip(300)["clip"] > 0.8

    def test_judge_knows_renders_it_never_saw(self):
        rng = np.random.default_rng(31337)
        scenes = [sample_scene(rng, pairs=0) for _ in range(200)]
        seen = judge([Image.fromarray(render(s)) for s in scenes])
        assert np.mean([t == world.names[s.objects[0]] for t, s in zip(seen.top, scenes, strict=True)]) > 0.97
        assert np.mean([b == s.background for b, s in zip(seen.background, scenes, strict=True)]) > 0.97

    def test_generator_draws_what_it_is_told(self, pipe):
        from erase_sd.pipelines import generate

        names = world.names[::4]
        images = generate(pipe, [f"a photo of {with_article(n)}" for n in names], list(range(len(names))))
        assert np.mean([a == b for a, b in zip(judge(images).top, names, strict=True)]) > 0.6  # chance is 1 in 69


def test_erasing_removes_the_concept_and_keeps_the_rest(pipe):
    from erase_sd.pipelines import generate

    kept = ("fox", "donut", "butterfly", "wine")
    prompts = ["a photo of a strawberry"] * 8 + [f"a photo of {with_article(k)}" for k in kept for _ in range(3)]
    seeds = list(range(len(prompts)))
    before = judge(generate(pipe, prompts, seeds)).top
    pipe.erase("strawberry")
    after = judge(generate(pipe, prompts, seeds)).top

    def right(tops):
        return sum(t == k for t, k in zip(tops[8:], [k for k in kept for _ in range(3)], strict=True))

    assert before[:8].count("strawberry") >= 6
    assert after[:8].count("strawberry") <= 2
    assert right(after) >= 0.7 * right(before) > 6


def test_training_runs_skips_what_is_done_and_exports_a_loadable_model(tmp_path):
    def train(*stages):
        command = [sys.executable, "-m", "erase_sd.emoji.train", "--plan", "smoke", "--out", str(tmp_path)]
        subprocess.run([*command, "--stages", *stages], check=True, capture_output=True, timeout=300)

    train("scenes", "vae", "clip", "judge", "latents", "unet", "vision", "export")
    unet = tmp_path / "weights" / "emoji-sd" / "unet" / "diffusion_pytorch_model.safetensors"
    first = unet.read_bytes()
    shutil.rmtree(tmp_path / "weights")
    train("unet", "export")  # finished stages cost no step and change nothing
    assert unet.read_bytes() == first
    command = [sys.executable, "-m", "erase_sd.emoji.train", "--plan", "smoke", "--init", str(tmp_path / "weights")]
    subprocess.run([*command, "--out", str(tmp_path / "more")], check=True, capture_output=True, timeout=300)
    about = json.loads((tmp_path / "more" / "weights" / "training.json").read_text())
    assert about["seed"] == 1 and about["continues"]["seed"] == 0  # other scenes, and where they started
    assert (tmp_path / "more" / "weights" / unet.relative_to(tmp_path / "weights")).read_bytes() != first
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "weights" / "emoji-sd", local_files_only=True)
    assert pipe("a cat", num_inference_steps=2).images[0].size == (64, 64)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    from erase_sd.emoji import trainer

    monkeypatch.setitem(trainer.PLANS, "tiny", trainer.PLANS["smoke"] | {"vae": trainer.Plan(30, 4, 1e-2)})

    def train(out, *, die_at=None):
        t = trainer.Trainer(out, plan="tiny", device="cpu", seed=0)
        torch.manual_seed(0)
        net, ema = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
        ema.load_state_dict(net.state_dict())

        def loss(step):
            if step == die_at:
                raise KeyboardInterrupt
            x = torch.from_numpy(t.rng(2, step).normal(size=(4, 3))).float()
            return {"loss": (net(x) + torch.randn(4, 1)).square().mean()}

        t.loop("vae", net, loss, ema=ema, save_every=0)
        return net, ema

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", die_at=17)
    (tmp_path / "cut" / "vae.state.tmp").write_bytes(b"half a save")  # as a kill in the middle of one leaves
    again = train(tmp_path / "cut")
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(ValueError, match="choose another --out"):
        trainer.Trainer(tmp_path / "cut", plan="tiny", device="cpu", seed=1)


@pytest.mark.parametrize("link", ["pipelines", "prompts", "eval"])
def test_top_level_links_point_into_the_package(link):
    assert (ROOT / link).is_symlink() and (ROOT / link).resolve() == ROOT / "erase_sd" / link
