"""Results, speed, faults and validation: what is measured, and what the pages say of it."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.algebra.methods import METHODS
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import Scene
from erase_sd.emoji.subjects import concept_in
from erase_sd.emoji.world import load_world
from erase_sd.eval.variants import Asked
from lab import emoji_checks, results, speed
from lab.emoji_page import EARLIER, commands, curve, second_opinion, training_table
from lab.emoji_sd import GOALS, goals, validation_page
from lab.faults import __main__ as faults
from lab.timing import child, median, uce_by_layer

TRAINING = {
    "command": "train --again",
    "hardware": "CPU",
    "python": "3",
    "torch": "2",
    "seconds": {"unet": 20, "export": 1},
    "plan": {"scenes": 5, "unet": {"steps": 2, "batch": 4, "lr": 0.1}},
    "continues": {
        "command": "train",
        "seconds": {"scenes": 3},
        "plan": {"scenes": 7},
    },
}


class TestResults:
    def test_a_run_is_made_once_and_again_when_defaults_change(self, tmp_path, monkeypatch):
        folder = tmp_path / "emoji-policy"
        asked, trial = Asked(methods=("uce",)), {"limit": 1, "steps": 2}
        first = results.run(asked, "emoji-policy", folder, **trial)
        assert set(first["variants"]) == {"original", "uce"}
        own = json.loads((folder / "run" / "results.json").read_text())
        assert own == first
        image = next((folder / "run" / "uce" / "images").iterdir())
        stamp = image.stat().st_mtime_ns
        assert results.run(asked, "emoji-policy", folder, **trial) == first
        assert image.stat().st_mtime_ns == stamp
        page = results.results_page({"emoji-policy": first}, "python -m lab.results", tmp_path)
        text = page.read_text("utf-8")
        assert "## emoji-policy" in text and "| uce |" in text and first["protocol"]["hash"] in text
        uce = METHODS["uce"]
        monkeypatch.setitem(METHODS, "uce", replace(uce, strength=0.0))
        other = results.run(asked, "emoji-policy", folder, **trial)
        drift = other["variants"]["uce"]["drift"]
        assert drift["retain"]["mean"] == 0 < first["variants"]["uce"]["drift"]["retain"]["mean"]

    def test_the_plan_is_of_protocols_and_methods_that_exist(self):
        from erase_sd.eval.protocol import available

        assert set(results.PLAN) <= set(available())
        assert all(set(methods) <= set(METHODS) for methods in results.PLAN.values())


class TestSpeed:
    R = {
        "machine": "m",
        "solve": [
            {
                "model": "SD 1.4", "matrices": 32, "width": 768, "uce by layer": 2.0,
                "uce by one map": 0.1, "relative difference of the two": 1e-3, "default": 0.2,
                "fit, all of it": 1.0,
            }
        ],
        "copies": [
            {"model": "SD 1.4", "GB": 2.0, "cp": 1.0, "apply": 2.0, "erase": 5.3, "peak GB": 0.9}
        ],
        "cold": {"erase-concept --help": 0.1, "erase-concept erase --help": 0.2},
        "scaling": [
            {"concepts": 1, "encoding": 0.1, "solve and apply": 0.1, "peak GB": 0.90},
            {"concepts": 1000, "encoding": 9.0, "solve and apply": 0.3, "peak GB": 0.95},
        ],
    }  # fmt: skip

    def test_goals_are_met_only_when_met(self):
        assert all(g.met for g in speed.goals(self.R))
        worse = json.loads(json.dumps(self.R))
        worse["solve"][0]["uce by layer"] = 1.99
        worse["copies"][0] |= {"erase": 5.31, "peak GB": 1.0}
        worse["scaling"][1] |= {"solve and apply": 0.31, "peak GB": 1.01}
        worse["cold"]["erase-concept erase --help"] = 0.3
        assert not any(g.met for g in speed.goals(worse))

    def test_the_page_is_of_its_numbers(self):
        text = speed.speed_page(self.R, "python -m lab.speed")
        assert "| SD 1.4 | 32 | 768 | 2.00 s | 0.100 s | 20 x | 1.0e-03 | 0.20 s | 1.00 s |" in text
        assert "| SD 1.4 | 2.0 GB | 1.0 s | 2.0 s | +0.7 s | 5.3 s | +4.0 s | 0.90 GB |" in text
        assert "| 1000 | 9.0 s | 0.30 s | 3.00 x | 0.95 GB |" in text and "GPU" not in text
        gpu = self.R | {"solve": [self.R["solve"][0] | {"apply on GPU": 0.5}]}
        assert "on the GPU takes 0.5000 s" in speed.speed_page(gpu, "x")

    def test_uce_by_layer_solves_its_normal_equations(self):
        """The minimum of UCE's loss, by numpy's least squares on the stacked problem."""
        generator = torch.Generator().manual_seed(0)
        W = torch.randn(3, 6, generator=generator)
        c, g, p = (torch.randn(n, 6, generator=generator) for n in (2, 2, 4))
        got = uce_by_layer({"w": W}, c, g, p)["w"]
        rows = torch.cat([c, p, 0.5**0.5 * torch.eye(6)]).numpy()
        want = torch.cat([g @ W.T, p @ W.T, 0.5**0.5 * W.T]).numpy()
        reference = np.linalg.lstsq(rows, want, rcond=None)[0].T
        assert np.allclose(got.numpy(), reference, atol=1e-4)

    def test_stages_that_are_done_are_not_measured_again(self, tmp_path, monkeypatch):
        asked = []

        def stub(name, value):
            monkeypatch.setattr(speed, name, lambda *a, **k: asked.append(name) or value)

        for name in ("write_folder", "write_single", "open_checkpoint"):
            stub(name, None)
        for name in ("cold", "scaling", "copies", "solve_times"):
            stub(name, {"name": name})
        monkeypatch.setenv("ERASE_SD_CACHE", "x")
        first = speed.measure(tmp_path, small=True, peer=None)
        assert asked.count("copies") == asked.count("solve_times") == 2
        done = len(asked)
        assert speed.measure(tmp_path, small=True, peer=None) == first and len(asked) == done
        assert first["cold"] == {"name": "cold"} and len(first["solve"]) == 2

    def test_a_child_is_timed_and_its_failure_told(self, tmp_path):
        import sys

        seconds, peak = child([sys.executable, "-c", "import time; time.sleep(0.2)"], tmp_path)
        assert 0.2 <= seconds < 60 and peak > 0.001
        with pytest.raises(RuntimeError, match=r"(?s)failed: .*ZeroDivisionError"):
            child([sys.executable, "-c", "1/0"], tmp_path)

    def test_the_median_is_the_middle_one(self, monkeypatch):
        clock = iter([0, 5, 10, 11, 20, 23])
        monkeypatch.setattr("lab.timing.time.perf_counter", lambda: next(clock))
        assert median(lambda: None) == 3


def test_faults_count_what_is_told_in_capitals():
    kills = {("erase", "new"): 3, ("erase", "nothing"): 1, ("bake", "HALF-WRITTEN"): 2}
    found = {"kills": Counter(kills)}
    assert faults.wrong(found) == 2
    text = faults.faults_page(found, "python -m lab.faults")
    assert "| erase | 4 | new 3, nothing 1 |" in text and "6 trials" in text and "2 wrong" in text


class TestValidation:
    def draw(self, prompts, series):
        """What a perfect generator draws: whatever a prompt names."""
        world = load_world()
        images = []
        for i, prompt in enumerate(prompts):
            names = [concept_in(part).name for part in prompt.split(" and ")]
            objects = tuple(world.names.index(n) for n in names)
            artist = next((k for k, a in enumerate(world.artists) if f" by {a}" in prompt), None)
            drawn = [
                a
                for a, own in enumerate(emoji_checks.available_objects())
                if set(objects) <= set(own)
            ]
            ground = next((b for b in world.backgrounds if f"on a {b} " in prompt), "white")
            scene = Scene(
                objects, drawn[0] if artist is None else artist, ground, ("",) * len(objects), i
            )
            images.append(Image.fromarray(render(scene)))
        return images

    def test_a_perfect_generator_is_found_perfect_and_a_blind_one_not(self, monkeypatch):
        monkeypatch.setattr(emoji_checks, "load_second_judge", lambda: None)
        good = emoji_checks.check_generator(self.draw, 2, 2)
        assert good["objects"] > 0.97 and good["artists"] > 0.95 and good["backgrounds"] == 1
        assert (
            good["pairs"] > 0.85
            and len(good["per object"]) == 69
            and len(good["objects by seed"]) == 2
        )

        def blind(prompts, series):
            return [Image.new("RGB", (64, 64), "gray")] * len(prompts)

        bad = emoji_checks.check_generator(blind, 1, 1)
        assert bad["objects"] < 0.05 and bad["pairs"] < 0.1 and bad["backgrounds"] < 0.2

    def test_two_judges_agree_where_both_see_the_same(self, monkeypatch):
        from erase_sd.emoji.judge import shipped

        monkeypatch.setattr(emoji_checks, "load_second_judge", shipped)
        told = emoji_checks.check_objects(self.draw, 1, 1)["second judge"]
        assert told["agreement"] == told["agreement where the first is right"] == 1
        assert told["objects"] > 0.97
        part = emoji_checks.agreement(["a", "b", "c"], ["a", "x", "c"], ["a", "b", "y"])
        assert part["agreement"] == pytest.approx(1 / 3) and part["objects"] == pytest.approx(2 / 3)
        assert part["agreement where the first is right"] == 0.5

    def test_judge_and_clip_on_unseen_renders(self):
        judged = emoji_checks.check_judge(60)
        assert judged["judge"] > 0.9 and judged["judge background"] > 0.9
        assert emoji_checks.check_clip(80)["clip"] > 0.8

    def test_the_autoencoder_alone(self, pipe):
        told = emoji_checks.check_autoencoder(pipe, 18)
        assert 24 < told["autoencoder dB"] < 32 and told["autoencoder judge"] > 0.9
        assert told["sheet"].size == (9 * 128, 4 * 128)
        _, pictures = emoji_checks.unseen(18, 3)
        top = np.asarray(told["sheet"].crop((0, 0, 128, 128)).resize((64, 64)), float)
        assert (
            np.abs(top - np.asarray(pictures[0], float)).mean() < 4
        )  # an original, then what came

    def test_the_page_tells_missed_goals_and_every_training(self):
        result = {key: 1.0 for key in GOALS} | {"pairs": 0.7}
        del result["judges agree"], result["worst artist"]  # found from what is below
        result |= {
            "objects by seed": [1.0],
            "judge artist": 1.0,
            "judge background": 1.0,
            "judge pairs": 1.0,
        }
        result |= {
            "clip retrieval of 256": 0.5,
            "per object": {"cat": 0.25},
            "per artist": {"noto": 1.0},
        }
        result |= {"per background": {"red": 1.0}}
        result |= {"autoencoder dB": 27.44, "autoencoder judge": 0.998}
        missed = [GOALS["pairs"][0], GOALS["judges agree"][0]]  # nobody asked a second judge
        assert [g.what for g in goals(result) if not g.met] == missed
        text = validation_page(result, TRAINING, 21, 3)
        assert "at least 85.0% | 70.0% | **missed** |" in text and "cat 25%" in text
        assert "`train`, then `train --again`" in text and commands(TRAINING) == [
            "train",
            "train --again",
        ]
        assert training_table(TRAINING).splitlines()[2:] == [
            "| unet (continued) | 2 x 4 | 0.1 | 20 |", "| scenes | 7 |  | 3 |"
        ]  # fmt: skip
        assert "No second judge" in text and "at 27.4 dB" in text and "names 99.8%" in text
        now = "| 2 | 100.0% | 100.0% | 70.0% | 100.0% | 100.0% | 100.0% |"
        rows = curve(result, TRAINING).splitlines()
        assert rows[-1] == now and len(rows) == 2 + 1 + len(json.loads(EARLIER.read_text()))
        result["second judge"] = {
            "agreement": 0.9,
            "objects": 0.8,
            "agreement where the first is right": 0.95,
        }
        result["second judge on renders"] = {"judge": 0.99}
        assert "same object as the first in 90.0%" in second_opinion(result)
        result["second judge"]["agreement"] = 0.96
        result["per artist"] |= {"blob": 0.5}
        assert [g.what for g in goals(result) if not g.met] == [
            GOALS["pairs"][0],
            GOALS["worst artist"][0],
        ]
