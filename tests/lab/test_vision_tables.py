"""The papers' tables: which runs they are, resumed, with failures counted."""

import json

import pytest
import torch
from torch import nn

from erase_sd.vision import Data, Recipe, Samples, build, load_data, make_task, unlearn
from erase_sd.vision.train import logits, train
from lab.vision_cases import TABLES, Case, Setting, cases
from lab.vision_parts import PUBLISHED
from lab.vision_pgu import TABLES as PGU
from lab.vision_presets import GRIDS, PRESETS, preset_of
from lab.vision_report import average, by_class, markdown
from lab.vision_runs import headed, in_precision, run, shown, task_of
from lab.vision_tables import ALL, main


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits):
    return train(build("mlp", 10, 1), Samples(digits.train_x, digits.train_y), Recipe(epochs=15))


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_runs_that_its_methods_take(digits, table):
    """Each run's options are options of its method, and rows are told apart by what is in them."""
    from erase_sd.vision.methods import options_of

    fine = Data(
        "digits",
        digits.train_x,
        digits.train_y,
        digits.test_x,
        digits.test_y,
        digits.classes,
        tuple(f"{int(c)}{'ab'[i % 2]}" for i, c in enumerate(digits.train_y)),
        tuple(f"{int(c)}a" for c in digits.test_y),
    )
    chosen = {"methods": ["rayleigh", "unlink", "mask"], "classes": [0, 1], "seeds": 2}
    found = cases(table, fine, **chosen, layers=[f"layer{i}" for i in range(20)])
    assert len({c.row for c in found}) >= 2 and {c.seed for c in found} == {0, 1}
    rows: dict[str, set[str]] = {}
    for c in found:
        options_of(c.method, dict(c.options))
        told = json.dumps(
            [c.method, dict(c.options), c.shots, c.external, bool(c.siblings), c.forget.count(",")]
        )
        rows.setdefault(c.row, set()).add(told)
    assert all(len(kinds) == 1 for kinds in rows.values()) and len(
        {k for v in rows.values() for k in v}
    ) == len(rows)


def test_several_classes_show_unlink_at_other_ks_too(digits):
    found = cases("multi-class", digits, methods=["unlink"], classes=[0, 1], seeds=1)
    assert {c.row for c in found if "3 classes" in c.row} == {"unlink, 3 classes"} | {
        f"unlink k = {k}, 3 classes" for k in (1, 2, 5, 10)
    }


def test_presets_and_grids_are_of_options_that_exist():
    from erase_sd.vision.methods import options_of

    for (method, _), options in PRESETS.items():
        options_of(method, options)
    for method, grid in GRIDS.items():
        options_of(method, {k: v[0] for k, v in grid.items()})
    assert (
        preset_of("ga", "digits mlp") == {"lr": 0.03, "epochs": 10}
        and preset_of("unlink", "digits") == {}
    )


def test_failed_runs_are_counted_and_not_averaged():
    runs = [{"row": "ga", "numbers": {"UA": 100.0}, "why": ""}]
    runs += [{"row": "ga", "numbers": {}, "why": "ValueError: the loss became nan"}] * 9
    (row,) = average(runs)
    assert (row["runs"], row["failed"], row["mean"]) == (10, 9, {"UA": 100.0})
    text = markdown([row])
    assert (
        "| ga (9 of 10 failed) | 100.00 |" in text
        and "ga, 9 of 10: ValueError: the loss became nan." in text
    )


def test_published_numbers_stand_in_rows_that_say_so():
    rows = average([{"row": "unlink", "numbers": {"UA": 92.0, "RA": 99.0}, "why": ""}])
    text = markdown(rows, {"Unlink": {"RA": "99.47", "TA": "94.91"}})
    assert "| *published: Unlink* | - | 99.47 |" in text  # by name, and what ours lack stays out
    columns = {"UA", "RA", "TA", "MIA", "Avg.Gap", "seconds"}
    for name in ("class-wise", "random", "multi-class", "subclass", "shots", "layers", "external"):
        assert name in ALL and all(set(n) <= columns for n in PUBLISHED[name].values())
    assert set(PUBLISHED) - {"classes"} <= set(ALL)


def test_one_setting_for_all_classes_has_a_column_for_each():
    runs = [
        {"row": "ga", "case": f"class:{c}, seed {s}", "numbers": {"UA": 10.0 * c + s}, "why": ""}
        for c in (1, 2)
        for s in (0, 1)
    ]
    runs.append({"row": "ga", "case": "class:3, seed 0", "numbers": {}, "why": "nan"})
    (row,) = by_class(average([r | {"cost": 1.5} for r in runs]))
    assert row["mean"] == {"1": 10.5, "2": 20.5} and row["failed"] == 1 and row["why"] == "nan"
    assert average([r | {"cost": 1.5} for r in runs])[0]["cost"] == 7.5


class Attention(nn.Module):
    """A network without biases, whose second derivatives and forward ones are refused."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10, bias=False)

    def forward(self, x):
        if torch.is_grad_enabled():
            raise NotImplementedError("no derivative of this kernel")
        return self.head(x.flatten(1))


def test_a_method_that_does_not_apply_costs_its_row_alone(digits, tmp_path):
    torch.manual_seed(0)
    model = Attention()
    setting = Setting(digits, lambda seed: model, "digits", False, "linear")
    methods = ["affine", "unlink", "second-order", "ga"]
    rows = run("class-wise", setting, tmp_path, methods=methods, classes=[0], seeds=1)
    assert [r["failed"] for r in rows] == [0, 1, 0, 1, 1]
    text = markdown(rows)
    assert "has no bias" in text and "NotImplementedError: no derivative" in text


def test_a_table_is_resumed(tmp_path, capsys):
    argv = [
        "class-wise",
        "--model",
        "mlp",
        "--train",
        "--epochs",
        "4",
        "--classes",
        "3",
        "--method",
        "rayleigh",
        "--method",
        "mask",
        "--no-retrain",
        "--work",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]
    assert main(argv) == 0
    first = json.loads((tmp_path / "class-wise.json").read_text())
    assert [r["row"] for r in first] == ["original", "rayleigh", "mask"] and first[2]["mean"][
        "UA"
    ] == 100
    (journal,) = tmp_path.glob("*.jsonl")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:2], lines[2][:40]]))  # the last line was cut
    assert main(argv) == 0
    again = json.loads((tmp_path / "class-wise.json").read_text())
    drop = lambda rows: [{k: v for k, v in r["mean"].items() if k != "seconds"} for r in rows]  # noqa: E731
    assert drop(again) == drop(first) and again[1]["mean"]["seconds"] == first[1]["mean"]["seconds"]
    with pytest.raises(SystemExit):
        main(
            ["ranks", "--model", "mlp", "--train", "--method", "gf"]
        )  # an option that would do nothing


def test_another_model_of_the_same_name_is_measured_anew(digits, trained, tmp_path):
    other = unlearn(trained, make_task(digits, "class:5")).model
    found = []
    for model, identity in ((trained, "first"), (other, "second")):
        setting = Setting(digits, lambda seed, m=model: m, "digits", False, "same", identity)
        found.append(run("class-wise", setting, tmp_path, methods=["mask"], classes=[5], seeds=1))
    assert found[0][0]["mean"]["UA"] < 10 < 90 < found[1][0]["mean"]["UA"]


def test_headed_gives_the_same_numbers_and_its_time_counts(digits, trained, tmp_path):
    head, features, each = headed(trained, digits)
    a = unlearn(trained, make_task(digits, "class:3")).model
    b = unlearn(head, make_task(features, "class:3")).model
    torch.testing.assert_close(
        logits(a, digits.test_x), logits(b, features.test_x), atol=1e-4, rtol=1e-4
    )
    assert each > 0
    setting = Setting(features, lambda seed: head, "digits", False, "head", passes=1.0)
    rows = run(
        "class-wise",
        setting,
        tmp_path,
        methods=["unlink", "rayleigh", "mask"],
        classes=[3],
        seeds=1,
    )
    forget, whole = int((digits.train_y == 3).sum()), len(digits.train_y)
    assert (
        forget < rows[1]["mean"]["seconds"] < forget + 1
        and whole < rows[2]["mean"]["seconds"] < whole + 1
        and rows[3]["mean"]["seconds"] < 1  # a mask reads nothing
    )


def test_what_a_method_is_shown(digits):
    fine = tuple("ab"[i % 2] + str(int(c)) for i, c in enumerate(digits.train_y))
    data = Data(
        "digits",
        digits.train_x,
        digits.train_y,
        digits.test_x,
        digits.test_y,
        digits.classes,
        fine,
        fine[: len(digits.test_y)],
    )
    setting = Setting(data, lambda seed: None, "digits", False, "x", outside=data)
    task = make_task(data, "subclass:a3")
    seen = shown(task, Case("r", "subclass:a3", "rayleigh", 0, siblings=("b3",)), setting)
    assert set(seen.retain.y.tolist()) == {3} and len(seen.retain) == sum(f == "b3" for f in fine)
    task = make_task(data, "class:3")
    few = shown(task, Case("r", "class:3", "unlink", 0, shots=5), setting)
    assert len(few.forget) == 5 and len(few.retain) == len(task.retain)
    inside = Setting(data, lambda seed: None, "digits", False, "x")
    external = shown(task, Case("r", "class:3", "unlink", 0, external=True), inside)
    assert external.forget is task.test_forget


def test_a_part_of_a_task_and_a_retrain_made_elsewhere(digits, trained, tmp_path):
    """The methods see a share, and Retrain's numbers are those of the network that is given."""
    asked = []

    def anew(forget, seed):
        asked.append((forget, seed))
        return unlearn(trained, make_task(digits, forget), "mask").model, 7.0

    setting = Setting(
        digits, lambda seed: trained, "digits", True, "part", anew=anew, share=(0.25, 0.5)
    )
    whole, part = make_task(digits, "class:3"), task_of(setting, "class:3", 0)
    assert len(part.forget) == round(len(whole.forget) / 4)
    assert len(part.test_forget) == round(len(whole.test_forget) / 2)
    chosen = {"methods": ["mask", "unlink"], "classes": [3], "seeds": 1}
    rows = run("class-wise", setting, tmp_path, **chosen)
    means = {r["row"]: r["mean"] for r in rows}
    assert asked == [("class:3", 0)] and means["retrain"]["seconds"] == 7.0
    assert means["mask"]["Avg.Gap"] == 0 < means["unlink"]["Avg.Gap"]
    run("class-wise", setting, tmp_path, **(chosen | {"methods": ["mask", "unlink", "affine"]}))
    assert len(asked) == 1  # its numbers come from the journal


def test_a_training_in_less_precision_sees_its_own_steps(digits, trained):
    """Near float32's end; a cache of the first step's weights would lead elsewhere."""
    setting = Setting(digits, lambda seed: trained, "digits", False, "half", precision="bfloat16")
    task = make_task(digits, "class:3")
    with in_precision(setting, "ft"):
        half = unlearn(trained, task, "ft", lr=0.1, epochs=5).model
    full = unlearn(trained, task, "ft", lr=0.1, epochs=5).model
    a, b, start = (nn.utils.parameters_to_vector(m.parameters()) for m in (half, full, trained))
    assert 0 < (a - b).norm() < 0.2 * (b - start).norm()
    with in_precision(setting, "rayleigh"):
        assert not torch.is_autocast_enabled("cpu")  # a closed form is solved from float32


def test_single_layers_count_from_the_end(digits):
    names = [f"layer{i}" for i in range(20)]
    chosen = {"methods": [], "classes": [0], "seeds": 1}
    found = cases("layers", digits, **chosen, layers=names)
    single = [c for c in found if "from the end" in c.row and c.method == "unlink"]
    assert len(single) == 6
    assert [c.options["layers"] for c in (single[0], single[-1])] == ["layer19", "layer0"]
    sided = [c for c in cases("frontier", digits, **chosen, layers=names) if "layers" in c.options]
    assert [c.options["layers"] for c in sided] == [tuple(names[-4:])]


def test_the_one_entry_point_has_every_table(tmp_path, capsys):
    assert {"class-wise", "siblings", "pgu-1", "pgu-figures"} <= set(ALL) and set(PGU) < set(ALL)
    with pytest.raises(SystemExit):
        main(["pgu-1", "--model", "mlp"])  # it trains its networks
    assert "give --train" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["siblings", "--model", "mlp", "--classes", "3"])
    assert "chooses no classes" in capsys.readouterr().err
