"""Data and samples: what is read, how it is normalised, how much of it is in memory."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.vision import Data, Samples, Task, load_data, make_task
from erase_sd.vision.hub import HUB
from tests.vision.helpers import grey


def write_folder(root, classes=("a", "b"), count=3, size=8):
    for split in ("train", "test"):
        for i, c in enumerate(classes):
            (root / split / c).mkdir(parents=True)
            for n in range(count):
                Image.fromarray(grey(60 * i + n, size)).save(root / split / c / f"{n}.png")
    return root


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A data set in files as the Hub has them: parquet by split, columns described in the card."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        coarse=datasets.ClassLabel(names=["pet"]),
    )
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 4), ("test", 2)):
        rows = {
            "image": [Image.fromarray(grey(31 * i)) for i in range(count)],
            "label": [i % 2 for i in range(count)],
            "coarse": [0] * count,
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    files = [f"  - split: {s}\n    path: data/{s}-*" for s in ("train", "test")]
    card = ["---", "configs:", "- config_name: default", "  data_files:", *files, "---", "# mine"]
    (folder / "README.md").write_text("\n".join(card) + "\n")
    return folder


def asked_pixels(data):
    """Whether any source of the training images is a picture already."""
    return any(isinstance(s, np.ndarray | Image.Image) for s in data.train_x.sources)


class TestLoading:
    def test_npz(self, tmp_path, digits):
        images = (digits.train_x[:40, 0] * 255).byte().numpy()[..., None].repeat(3, -1)
        labels = np.arange(40) % 4
        np.savez(
            tmp_path / "d.npz",
            train_images=images,
            train_labels=labels,
            test_images=images,
            test_labels=labels,
        )
        data = load_data(str(tmp_path / "d.npz"), size=16)
        assert (
            data.train_x.shape == (40, 3, 16, 16)
            and data.classes == ("0", "1", "2", "3")
            and data.channels == 3
        )
        np.savez(tmp_path / "e.npz", train_images=images)
        with pytest.raises(ValueError, match="lacks train_labels"):
            load_data(str(tmp_path / "e.npz"))
        whole = (tmp_path / "d.npz").read_bytes()
        (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="cannot read"):
            load_data(str(tmp_path / "d.npz"))

    def test_folder(self, tmp_path):
        data = load_data(str(write_folder(tmp_path / "f")))
        assert data.classes == ("a", "b") and len(data.train_x) == 6
        assert float(data.train_x[torch.tensor([3])][0, 0, 0, 0]) == pytest.approx(60 / 255 * 2 - 1)
        (tmp_path / "f" / "test" / "c").mkdir()
        with pytest.raises(ValueError, match="a class that train lacks: c"):
            load_data(str(tmp_path / "f"))

    def test_an_image_that_is_none(self, tmp_path):
        root = write_folder(tmp_path / "f")
        (root / "train" / "a" / "0.png").write_bytes(b"no")
        data = load_data(str(root))
        with pytest.raises(ValueError, match="cannot read an image"):
            data.train_x[torch.tensor([0])]

    def test_nothing_there(self, tmp_path):
        for where in ("nothing-here", str(tmp_path / "n.npz"), str(tmp_path / "empty")):
            (tmp_path / "empty").mkdir(exist_ok=True)
            with pytest.raises(ValueError, match=r"no data|cannot read|holds no"):
                load_data(where)

    def test_a_folder_of_parquet_as_the_hub_has_it(self, hub_folder):
        data = load_data(str(hub_folder), size=4)
        assert data.classes == ("cat", "dog") and data.name == "mine"
        assert len(data.train_x) == 4 and len(data.test_x) == 2
        assert data.train_y.tolist() == [0, 1, 0, 1]
        assert not asked_pixels(data)  # bytes until a batch is asked for
        x = data.train_x[torch.tensor([3])]
        assert x.shape == (1, 3, 4, 4) and float(x[0, 0, 0, 0]) == pytest.approx(93 / 255 * 2 - 1)
        task = make_task(data, "class:dog")
        both = task.forget.joined(task.retain)
        torch.testing.assert_close(both.x[torch.tensor([1])], x)

    def test_names_on_the_hub_stand_for_columns_and_configurations(self, hub_folder, monkeypatch):
        """Superclasses with finer names, in the layout that CIFAR-100 has there."""
        monkeypatch.setitem(HUB["cifar20"], "id", str(hub_folder))
        monkeypatch.setitem(HUB["cifar20"], "label", "coarse")
        monkeypatch.setitem(HUB["cifar20"], "fine", "label")
        data = load_data("cifar20", size=4)
        assert data.classes == ("pet",) and data.train_fine == ("cat", "dog", "cat", "dog")
        mean, std = 0.5071, 0.2673
        first = float(data.train_x[torch.tensor([0])][0, 0, 0, 0])
        assert first == pytest.approx(-mean / std, abs=1e-4)
        assert len(make_task(data, "subclass:dog").forget) == 2
        chosen = load_data(f"{hub_folder}#coarse")
        assert chosen.classes == ("pet",)
        monkeypatch.setitem(HUB["cifar20"], "config", "none")
        with pytest.raises(ValueError, match=r"cifar20 .* cannot be had here"):
            load_data("cifar20")

    def test_what_the_hubs_tables_lack(self, hub_folder):
        with pytest.raises(ValueError, match="expected a column of labels, .* label, coarse"):
            load_data(f"{hub_folder}#none")
        (hub_folder / "data" / "test-00000-of-00001.parquet").unlink()
        (hub_folder / "README.md").unlink()
        with pytest.raises(ValueError, match="expected a split train and one of test"):
            load_data(str(hub_folder))
        with pytest.raises(ValueError, match="owner/none .* cannot be had here"):
            load_data("owner/none")

    def test_the_hub_without_its_library_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match=r"pip install 'erase-sd\[hub\]'"):
            load_data("cifar10")


class TestTasks:
    def test_splits(self, digits):
        t = make_task(digits, "random:0.1", seed=3)
        assert (
            len(t.forget) == round(0.1 * len(digits.train_y))
            and not len(t.test_forget)
            and not t.classes
        )
        assert torch.equal(make_task(digits, "random:0.1", seed=3).forget.x, t.forget.x)
        assert len(make_task(digits, "index:1,5").forget) == 2
        assert make_task(digits, "class:2#7").name == "class:2#7"

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("class:12", "no class '12'"),
            ("class:", "expected class"),
            ("cat", "expected class"),
            ("class:0#0", "a number of samples up to"),
            ("class:0#x", "a number of samples up to"),
            ("random:5#3", "expected class"),
            ("random:0", "between 1 and"),
            ("random:x", "a share or a number"),
            ("index:99999", "expected indices below"),
            ("subclass:lion", "no finer names"),
            ("class:0,1,2,3,4,5,6,7,8,9", "train anew"),
        ],
    )
    def test_bad_specifications(self, digits, what, message):
        with pytest.raises(ValueError, match=message):
            make_task(digits, what)

    def test_subclasses(self, digits):
        x, y = digits.train_x[:8], torch.tensor([0, 0, 0, 1, 1, 1, 0, 1])
        fine = tuple("aabccdbd")
        data = Data("fine", x, y, x, y, ("0", "1"), fine, fine)
        t = make_task(data, "subclass:a,d")
        assert t.forget.y.tolist() == [0, 0, 1, 1] and not t.classes
        with pytest.raises(ValueError, match="no 'z' in fine; there are a, b, c, d"):
            make_task(data, "subclass:z")

    def test_bad_labels_and_empty_sets(self):
        with pytest.raises(ValueError, match="as many labels"):
            Samples(torch.zeros(3, 2), torch.zeros(2).long())
        few = Samples(torch.zeros(2, 2), torch.tensor([0, 9]))
        with pytest.raises(ValueError, match=r"labels in 0\.\.2"):
            Task(few, few, few, few, (), 3, "x")
        empty = few[torch.zeros(2, dtype=torch.bool)]
        with pytest.raises(ValueError, match="nothing to forget"):
            Task(empty, few, few, few, (), 10, "x")
