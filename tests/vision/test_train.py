"""Recipes, schedules, augmentation, and trainings that were cut off."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from erase_sd.vision import Recipe, Samples, build
from erase_sd.vision.methods.retrain import Retrain
from erase_sd.vision.resume import spent
from erase_sd.vision.samples import augmented
from erase_sd.vision.train import Loop, train
from tests.vision.helpers import same


class TestTraining:
    def few(self):
        torch.manual_seed(0)
        return Samples(torch.randn(24, 3, 8, 8), torch.arange(24) % 3)

    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            ("constant", [1, 1, 1, 1]),
            ("steps", [1, 1, 0.1, 0.01]),
            ("cosine", [1, 0.8536, 0.5, 0.1464]),
            ("exponential", [1, 0.1495, 0.02236, 0.003344]),
            ("one-cycle", [0, 0.933, 0.5868, 0.1786]),
        ],
    )
    def test_schedules(self, schedule, rates):
        recipe = Recipe(lr=1.0, schedule=schedule)
        assert [recipe.rate(p) for p in (0, 0.25, 0.5, 0.75)] == pytest.approx(rates, rel=1e-3)

    @pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
    def test_optimizers_step_as_their_formulas(self, tiny, optimizer):
        model, task = tiny
        new = copy.deepcopy(model)
        recipe = Recipe(
            epochs=1, lr=0.1, batch=64, optimizer=optimizer, schedule="constant", weight_decay=0.0
        )
        train(new, task.retain, recipe)
        g = torch.autograd.grad(
            nn.functional.cross_entropy(model(task.retain.x), task.retain.y), model.parameters()
        )
        for p, q, d in zip(new.parameters(), model.parameters(), g, strict=True):
            step = 0.1 * 1.9 * d if optimizer == "nesterov" else 0.1 * d / (d.abs() + 1e-8)
            torch.testing.assert_close(p, q - step, atol=1e-6, rtol=1e-4)

    def test_a_training_that_was_cut_off_goes_on_to_the_same_end(self, tmp_path):
        recipe = Recipe(epochs=3, batch=8, augment=True)
        straight = train(build("resnet20", 3), self.few(), recipe, loop=Loop(resume=tmp_path / "a"))

        class Cut(Exception):
            pass

        steps = []

        def stop(optimizer):
            steps.append(1)
            if len(steps) == 5:
                raise Cut

        loop = Loop(resume=tmp_path / "b", after_step=stop)
        with pytest.raises(Cut):
            train(build("resnet20", 3), self.few(), recipe, loop=loop)
        again = train(
            build("resnet20", 3, seed=9), self.few(), recipe, loop=Loop(resume=tmp_path / "b")
        )
        assert same(again, straight)
        longer = Recipe(epochs=4, batch=8, augment=True)
        with pytest.raises(ValueError, match="of another training"):
            train(build("resnet20", 3), self.few(), longer, loop=Loop(resume=tmp_path / "b"))

    def test_half_precision_learns_the_same_and_leaves_no_trace(self, tmp_path):
        """Near float32's end, cut off or not; weights stay float32 and lie as they did."""
        full = Recipe(epochs=1, batch=32, schedule="constant", lr=0.01)
        half = replace(full, precision="bfloat16")
        plain = train(build("resnet20", 3), self.few(), full)
        rounded = train(build("resnet20", 3), self.few(), half)
        assert not same(plain, rounded)
        assert all(p.dtype == torch.float32 and p.is_contiguous() for p in rounded.parameters())
        models = (plain, rounded, build("resnet20", 3))
        a, b, start = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models)
        assert (a - b).norm() < 0.3 * (a - start).norm()
        train(build("resnet20", 3), self.few(), half, loop=Loop(resume=tmp_path / "a"))
        state = torch.load(tmp_path / "a", weights_only=True)
        assert state["epoch"] == 1 and state["seconds"] == spent(tmp_path / "a") > 0
        again = train(
            build("resnet20", 3, seed=5), self.few(), half, loop=Loop(resume=tmp_path / "a")
        )
        assert same(again, rounded)
        assert spent(tmp_path / "none") == 0

    def test_a_kept_training_is_known_by_its_recipe_alone(self, tmp_path):
        """Not by what a method adds to it, such as where the file is."""
        recipe = Recipe(epochs=1, batch=8)
        train(build("resnet20", 3), self.few(), recipe, loop=Loop(resume=tmp_path / "a"))
        asked = Retrain(epochs=1, batch=8, lr=recipe.lr, resume=str(tmp_path / "a"))
        train(build("resnet20", 3), self.few(), asked, loop=Loop(resume=tmp_path / "a"))
        with pytest.raises(ValueError, match="lr=0.5, batch=8"):
            other = replace(recipe, lr=0.5)
            train(build("resnet20", 3), self.few(), other, loop=Loop(resume=tmp_path / "a"))

    def test_crops_and_flips_are_of_the_padded_image(self):
        x = torch.arange(2 * 3 * 5 * 5).float().reshape(2, 3, 5, 5) + 1
        got = augmented(x, torch.Generator().manual_seed(0))
        padded = nn.functional.pad(x, (4, 4, 4, 4))
        for i in range(2):
            crops = [padded[i, :, a : a + 5, b : b + 5] for a in range(9) for b in range(9)]
            assert any(torch.equal(got[i], c) or torch.equal(got[i], c.flip(2)) for c in crops)
        torch.manual_seed(0)
        flips = augmented(
            torch.randn(1, 1, 5, 5).repeat(40, 1, 1, 1), torch.Generator().manual_seed(1)
        )
        assert len({tuple(f.flatten().tolist()) for f in flips}) > 20

    def test_a_loss_that_is_not_finite_is_told(self):
        with pytest.raises(ValueError, match="lower the learning rate"):
            train(build("resnet20", 3), self.few(), Recipe(epochs=3, lr=1e30, schedule="constant"))

    def test_a_recipe_that_is_none(self):
        with pytest.raises(ValueError, match="lr > 0"):
            Recipe(lr=0)
        with pytest.raises(ValueError, match="sgd, nesterov or adam"):
            Recipe(optimizer="lion")
        with pytest.raises(ValueError, match="float32 or bfloat16"):
            Recipe(precision="half")
