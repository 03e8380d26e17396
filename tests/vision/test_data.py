"""Data and samples: what is read, how it is normalised, how much of it is in memory."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.vision import Data, Pictures, Samples, Task, load_data, make_task
from erase_sd.vision.data import HUB, Form


def grey(value, size=8):
    return np.full((size, size, 3), value, np.uint8)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar100", 0.5071, 0.2673),
        ("cifar20", 0.5071, 0.2673),
        ("cifar10", 0.485, 0.229),
        ("mine", 0.5, 0.5),
        ("oxford-pets", 0.48145466, 0.26862954),
        ("imagenette", 0.485, 0.229),
    ],
)
def test_every_data_set_has_its_own_constants(name, mean, std):
    x = Form().pictures(np.stack([grey(0, 2)]), name)
    assert float(x[0, 0, 0, 0]) == pytest.approx(-mean / std)


def test_a_models_own_constants_go_before_those_of_the_data():
    x = Form(statistics=((0.0,) * 3, (0.1,) * 3)).pictures(np.stack([grey(255, 2)]), "cifar10")
    assert float(x[0, 0, 0, 0]) == pytest.approx(10)


class TestPictures:
    def make(self, count=7):
        return Pictures(list(range(count)), lambda i: grey(10 * i), 4)

    def test_a_batch_is_decoded_when_it_is_asked_for(self):
        asked = []
        pictures = Pictures(list(range(1000)), lambda i: asked.append(i) or grey(i % 256), 4)
        batch = pictures[torch.tensor([3, 5])]
        assert asked == [3, 5] and batch.shape == (2, 3, 4, 4)
        torch.testing.assert_close(batch[0, 0, 0, 0], torch.tensor(3 / 255 * 2 - 1))
        assert len(pictures.take(torch.arange(1000) > 990)) == 9 and asked == [3, 5]

    def test_they_answer_as_a_tensor_does(self):
        pictures = self.make()
        whole = torch.cat(list(pictures.split(3)))
        assert torch.equal(whole[torch.tensor([6, 1])], pictures[torch.tensor([6, 1])])
        both = Samples(pictures, torch.arange(7)).joined(Samples(pictures, torch.arange(7)))
        assert torch.equal(both[torch.tensor([8])].x[torch.tensor([0])], whole[1:2])
        with pytest.raises(ValueError, match="inputs of one kind"):
            Samples(pictures, torch.arange(7)).joined(Samples(whole, torch.arange(7)))
        with pytest.raises(IndexError, match="below 7"):
            pictures[torch.tensor([7])]

    def test_sizes_that_differ_are_told(self):
        pictures = Pictures([4, 8], lambda i: grey(0, i))
        with pytest.raises(ValueError, match="differ in size; give --size"):
            list(pictures.split(2))

    def test_large_images_stay_bytes(self):
        """800 images of 224 x 224 as float32 would be 480 MB; the process stays far below it."""
        script = (
            "import resource, numpy as np, torch\n"
            "from erase_sd.vision.data import Form\n"
            "x = Form(224).pictures(np.zeros((800, 32, 32, 3), np.uint8), 'mine')\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "assert sum(len(part) for part in x.split(50)) == 800\n"
            "grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024\n"
            "assert grown < 250, grown\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr


def write_folder(root, classes=("a", "b"), count=3, size=8):
    for split in ("train", "test"):
        for i, c in enumerate(classes):
            (root / split / c).mkdir(parents=True)
            for n in range(count):
                Image.fromarray(grey(60 * i + n, size)).save(root / split / c / f"{n}.png")
    return root


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

    @pytest.mark.parametrize("name", HUB)
    def test_the_hub_as_datasets_gives_it(self, name, monkeypatch):
        """Columns, splits and class names as `datasets` returns them for the real ones."""
        about = HUB[name]
        asked = []

        class Rows(dict):
            features = {
                k: types.SimpleNamespace(names=["x", "y"])
                for k in (about["label"], about.get("fine", "-"))
            }

        def split(value):
            picture = Image.fromarray(grey(value))
            rows = {about["image"]: [picture, picture], about["label"]: [0, 1]}
            return Rows(rows | ({about["fine"]: [1, 0]} if "fine" in about else {}))

        def load_dataset(repository, config=None):
            asked.append((repository, config))
            return {"train": split(0), about.get("test", "test"): split(255)}

        monkeypatch.setitem(
            sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset)
        )
        data = load_data(name, size=4)
        assert asked == [(about["id"], about.get("config"))] and data.classes == ("x", "y")
        assert data.test_x[torch.tensor([0])].shape == (1, 3, 4, 4)
        assert data.train_fine == (("y", "x") if "fine" in about else None)

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
