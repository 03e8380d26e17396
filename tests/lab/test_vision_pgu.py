"""PGU's tables and figures, as its paper sets them up, on half of digits."""

import pytest
import torch

from erase_sd.vision import Data, Recipe, load_data
from lab.vision_pgu import World, figures, in_steps, poisoned, removal, table


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


class TestPguSetUps:
    @pytest.fixture(scope="class")
    def world(self, digits):
        few = torch.arange(0, len(digits.train_y), 2)
        data = Data(
            "digits",
            digits.train_x[few],
            digits.train_y[few],
            digits.test_x,
            digits.test_y,
            digits.classes,
        )
        return World(data, "mlp", Recipe(epochs=12))

    def test_samples_and_classes(self, world):
        rows = {r["row"]: r["mean"] for r in removal(world, "class:0#7", 1)}
        assert set(rows) == {"original", "retrained", "eu-k", "ntk", "scrub", "pgu"}
        assert set(rows["original"]) == {"D_f error", "D_r error", "D_test error"}
        rows = {r["row"]: r["mean"] for r in removal(world, "class:0,1,2,3,4", 1)}
        assert set(rows["original"]) == {
            "D_r error",
            "D_test error",
        }  # the forgotten classes' rows are dropped

    def test_steps_of_samples_of_every_class(self, world):
        rows = {r["row"]: r["mean"] for r in in_steps(world, 2, 2, 1)}
        assert list(rows) == [
            "PGU, 0 to 20",
            "retrained, 0 to 20",
            "PGU, 20 to 40",
            "retrained, 20 to 40",
        ]
        assert rows["PGU, 20 to 40"]["D_test error"] < 25

    def test_flipped_labels(self, world):
        rows = {r["row"]: r["mean"] for r in poisoned(world, 1)}
        assert list(rows) == ["poisoned", "clean", "PGU", "first-order", "second-order"]
        half = {row: numbers["50% flipped"] for row, numbers in rows.items()}
        assert (
            half["poisoned"] < half["PGU"] - 10
            and half["clean"] > 60
            and half["first-order"] < half["PGU"]
        )

    def test_by_name(self, world):
        rows, picture = table("pgu-1", world, 1, 3)
        assert {"retrained", "pgu"} < {r["row"] for r in rows} and picture is None
        with pytest.raises(ValueError, match="expected one of pgu-1"):
            table("pgu-9", world, 1, 3)

    def test_figures(self, world):
        picture, rows = figures(world, "class:0#7", 3)
        found = {r["row"]: r["mean"] for r in rows}
        assert picture[:4] == b"\x89PNG" and set(found) == {
            "original",
            "retrained",
            "pgu",
            "scrub",
            "eu-k",
        }
        assert all(0 <= n["MIA AUC"] <= 1 for n in found.values())
