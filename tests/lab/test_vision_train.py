"""The original and Retrain by one recipe, resumed; rivals tuned; forget samples that are drawn."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from erase_sd.vision import Recipe, load_data, make_task
from erase_sd.vision.models import trained
from lab.journal import Journal
from lab.vision_cases import Setting
from lab.vision_cifar import drawn
from lab.vision_train import folder, main, original, own, recipe_of, retrained
from lab.vision_tune import tune

SHORT = ["--option", "epochs=3", "--option", "batch=16"]


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_the_command_trains_both_by_one_recipe_and_goes_on(tmp_path, capsys):
    argv = ["--model", "mlp", "--data", "digits", "--forget", "class:3", "--work", str(tmp_path)]
    assert main([*argv, *SHORT]) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "epochs=3" in first[0]["recipe"] and first[1]["original"]["test"] > 60
    assert first[2]["class:3"]["UA"] == 100 and first[2]["class:3"]["RA"] > 60
    (where,) = tmp_path.iterdir()
    kept = {f.name: f.read_bytes() for f in where.iterdir()}
    assert set(kept) == {"original-0.state", "retrain-class:3-0.state"}
    abouts = [torch.load(where / f, weights_only=True) for f in kept]
    recipes = {a["about"].partition(", seed")[0] for a in abouts}
    assert len(recipes) == 1 and {a["epoch"] for a in abouts} == {3}
    assert main([*argv, *SHORT]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert again[1:] == first[1:]
    assert kept == {f.name: f.read_bytes() for f in where.iterdir()}
    with pytest.raises(SystemExit):
        main([*argv, "--option", "epochs"])


def test_tables_find_the_trainings_that_are_kept(digits, tmp_path):
    few = torch.arange(300)
    data = replace(digits, train_x=digits.train_x[few], train_y=digits.train_y[few])
    setting = own(tmp_path, data, (0.5, 0.5), "mlp")
    network, seconds = setting.anew("class:3", 0)
    recipe, kept = recipe_of("mlp", data), folder(tmp_path, "mlp", data)
    assert len(list(kept.iterdir())) == 2
    model, _ = original("mlp", data, recipe, kept)
    again, same = retrained(model, make_task(data, "class:3"), recipe, kept)
    pairs = zip(network.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs) and seconds == same > 0
    assert setting.precision == recipe.precision and len(setting.layers) >= 2


def test_the_best_of_a_grid_is_told_and_not_looked_for_twice(digits, tmp_path):
    model = trained("mlp", digits, Recipe(epochs=10))
    setting = Setting(digits, lambda seed: model, "digits mlp", False, "short")
    tasks = [make_task(digits, "class:1")]
    grid = {"ft": {"lr": (1e30, 1e-6, 0.05), "epochs": (3,)}}
    journal = Journal(tmp_path / "tune.jsonl")
    found = tune(setting, ["ft"], grid, tasks, journal)
    assert found == {"ft": {"lr": 0.05, "epochs": 3}}
    lines = journal.path.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[0])["value"] is None  # it diverged
    assert tune(setting, ["ft"], grid, tasks, Journal(journal.path)) == found
    assert journal.path.read_text().splitlines() == lines
    with pytest.raises(ValueError, match="ft failed everywhere"):
        tune(setting, ["ft"], {"ft": {"lr": (1e30,)}}, tasks, journal)


def test_scenes_of_another_data_set_have_its_classes():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 10)

        def forward(self, x):
            assert x.shape[1:] == (3, 32, 32)
            return self.head(x.mean((2, 3)))

    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    data = drawn(Mean(), names, 2)
    assert data.classes == tuple(names) and data.train_x.shape == (16, 3)
    assert torch.bincount(data.train_y, minlength=10).tolist() == [2, 2, 0, 2, 0, 2, 2, 2, 2, 2]
