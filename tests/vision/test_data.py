"""Data and samples: what is read, how it is normalised, how much of it is in memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.vision import Data, Pictures, Samples, Task, load_data, make_task
from erase_sd.vision.hub import HUB
from erase_sd.vision.samples import Form


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


class TestImageProcessors:
    """Images are prepared as the model's own processor prepares them."""

    pictures = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(3)]

    def test_scaling_cropping_and_constants_are_its_own(self):
        """CLIP's: the shorter side scaled by bicubic, the middle cut out; by PIL here."""
        from transformers import CLIPImageProcessor

        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        processor = CLIPImageProcessor(
            size={"shortest_edge": 20}, crop_size=20, image_mean=mean, image_std=std
        )
        made = Form(processor=processor).pictures(list(self.pictures), "cifar10", lambda x: x)
        assert made.channels == 3
        got = made[torch.tensor([0, 2])]
        small = Image.fromarray(self.pictures[2]).resize((30, 20), Image.Resampling.BICUBIC)
        want = np.asarray(small.crop((5, 0, 25, 20))) / 255
        np.testing.assert_allclose(got[1].permute(1, 2, 0).numpy(), (want - mean) / std, atol=1e-5)
        square = Form(20).pictures(list(self.pictures), "cifar10", lambda x: x)
        assert not torch.allclose(square[torch.tensor([2])], got[1:])  # without it: all squeezed in

    def test_with_a_size_of_ones_own_its_constants_stay(self):
        from transformers import ViTImageProcessor

        processor = ViTImageProcessor(image_mean=[0.0] * 3, image_std=[0.1] * 3)
        x = Form(2, processor).pictures(np.stack([grey(255, 2)]), "cifar10")
        assert x.shape == (1, 3, 2, 2) and float(x[0, 0, 0, 0]) == pytest.approx(10)

    def test_grey_images_become_three_channels(self):
        from transformers import ViTImageProcessor

        processor = ViTImageProcessor(size={"height": 4, "width": 4})
        made = Form(processor=processor).pictures([np.zeros((8, 8), np.uint8)], "x", lambda x: x)
        assert made[torch.tensor([0])].shape == (1, 3, 4, 4)

    def test_digits_take_none(self):
        with pytest.raises(ValueError, match="expected no size and no image processor"):
            load_data("digits", size=16)


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

    def test_those_that_are_prepared_otherwise_do_not_join(self):
        with pytest.raises(ValueError, match="prepared alike"):
            self.make().joined(Pictures([1], lambda i: grey(i), 4))

    def test_sizes_that_differ_are_told(self):
        pictures = Pictures([4, 8], lambda i: grey(0, i))
        with pytest.raises(ValueError, match="differ in size; give --size"):
            list(pictures.split(2))

    def test_large_images_stay_bytes(self):
        """800 images of 224 x 224 as float32 would be 480 MB; the process stays far below it.

        And so does a network that reads them: what it keeps of one image, here 38 MB, it keeps of
        13 at once, not of 256.
        """
        script = (
            "import resource, numpy as np, torch\n"
            "from torch import nn\n"
            "from erase_sd.vision.samples import Form, Samples\n"
            "from erase_sd.vision.train import Recipe, gradient, train\n"
            "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
            "before = most()\n"
            "x = Form(224).pictures(np.zeros((800, 32, 32, 3), np.uint8), 'mine')\n"
            "few = Samples(x.take(torch.arange(64)), torch.zeros(64, dtype=torch.long))\n"
            "body = [nn.Conv2d(3, 32, 1), *(nn.ReLU() for i in range(5))]\n"
            "head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)]\n"
            "net = nn.Sequential(*body, *head)\n"
            "gradient(net, few)\n"
            "train(net, few, Recipe(epochs=1, batch=64))\n"
            "assert most() - before < 1000, most() - before\n"
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
