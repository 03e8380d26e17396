"""Models: shapes, whole weights or none, what transformers' folders hold, round trips."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from erase_sd.models.whole import whole
from erase_sd.vision import Data, Samples, build, load_model, make_task, measure, unlearn
from erase_sd.vision.models import load_weights, save_weights
from erase_sd.vision.networks import ARCHITECTURES
from erase_sd.vision.pretrained import Logits, ZeroShot, processor_of
from erase_sd.vision.train import accuracy, logits
from tests.vision.helpers import same, swin


@pytest.mark.parametrize("name", [a for a in ARCHITECTURES if a not in ("mlp", "cnn")])
def test_architectures_answer(name):
    with torch.no_grad():
        out = build(name, 7).eval()(torch.randn(1, 3, 32, 32))
    assert out.shape == (1, 7) and torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("name", "convolutions", "linear", "parameters"),
    [
        ("small-vgg", 3, 2, None),
        ("vgg11-bn", 8, 1, None),
        ("vgg16-bn", 13, 1, None),
        ("all-cnn", 8, 1, None),
        ("resnet20", 19, 1, 269_722),
        ("resnet18", 20, 1, 11_173_962),
        ("resnet50", 53, 1, 23_520_842),
    ],
)
def test_architectures_are_those_of_the_papers(name, convolutions, linear, parameters):
    """Layers and, where they are published, parameters."""
    model = build(name, 10)
    kinds = [sum(isinstance(m, k) for m in model.modules()) for k in (nn.Conv2d, nn.Linear)]
    assert kinds == [convolutions, linear]
    assert parameters is None or sum(p.numel() for p in model.parameters()) == parameters


class TestWeights:
    def test_round_trip_and_public_names(self, tmp_path):
        model = build("resnet20", 10)
        save_weights(model, tmp_path / "a.safetensors", {"method": "x"})
        assert same(load_model(f"resnet20:{tmp_path / 'a.safetensors'}", 10), model)
        state = {
            f"module.{k}": v
            for k, v in load_file(tmp_path / "a.safetensors").items()
            if "num_batches" not in k
        }
        save_file(state, tmp_path / "b.safetensors")
        assert same(load_weights(build("resnet20", 10, seed=4), tmp_path / "b.safetensors"), model)

    def test_what_cannot_be_loaded(self, tmp_path):
        (tmp_path / "x.safetensors").write_bytes(b"no")
        with pytest.raises(ValueError, match="cannot read"):
            load_model(f"mlp:{tmp_path / 'x.safetensors'}", 10)
        with pytest.raises(ValueError, match="pickles run code"):
            load_model(f"mlp:{tmp_path / 'x.pt'}", 10)
        save_weights(build("cnn", 10, 1), tmp_path / "c.safetensors", {})
        with pytest.raises(ValueError, match="does not fit"):
            load_model(f"mlp:{tmp_path / 'c.safetensors'}", 10)

    def test_a_mask_has_nothing_to_write(self, trained, task, tmp_path):
        with pytest.raises(ValueError, match="changes no weight"):
            save_weights(unlearn(trained, task, "mask").model, tmp_path / "m.safetensors", {})

    def test_emoji_clip_as_a_file(self, tmp_path):
        model = load_model("emoji-clip", 69)
        with torch.no_grad():
            model.projection.weight *= 2
        save_weights(model, tmp_path / "clip.safetensors", {})
        assert same(load_model(f"emoji-clip:{tmp_path / 'clip.safetensors'}", 69), model)
        with pytest.raises(ValueError, match="cannot read"):
            load_model(f"emoji-clip:{tmp_path / 'none.safetensors'}", 69)


class TestTransformersFolders:
    def folder(self, vit, tmp_path, drop=""):
        vit.save_pretrained(tmp_path / "vit")
        path = tmp_path / "vit" / "model.safetensors"
        state = load_file(path)
        if drop:
            kept = {k: v for k, v in state.items() if not k.startswith(drop)}
            assert len(kept) < len(state)
            save_file(kept, path, metadata={"format": "pt"})
        return str(tmp_path / "vit")

    def test_whole(self, vit, tmp_path):
        where = self.folder(vit, tmp_path)
        assert same(load_model(where, 3), Logits(vit))
        with pytest.raises(ValueError, match="has 3 classes, the data 10"):
            load_model(where, 10)

    @pytest.mark.parametrize(
        "drop", ["classifier", "vit.encoder.layer.0"]
    )  # as it is named in files
    def test_weights_that_are_missing_are_refused_not_drawn(self, vit, tmp_path, drop):
        with pytest.raises(
            ValueError, match="weights that ViTForImageClassification needs, such as .* random"
        ):
            load_model(self.folder(vit, tmp_path, drop), 3)

    def test_a_head_of_another_width_is_refused(self, vit, tmp_path):
        where = self.folder(vit, tmp_path)
        path = tmp_path / "vit" / "model.safetensors"
        state = load_file(path)
        save_file(
            state | {"classifier.weight": torch.zeros(5, 16), "classifier.bias": torch.zeros(5)},
            path,
            metadata={"format": "pt"},
        )
        with pytest.raises(ValueError, match="vit"):
            load_model(where, 3)

    def test_pickled_weights_and_remote_code_are_refused(self, vit, tmp_path):
        where = self.folder(vit, tmp_path)
        torch.save(vit.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
        (tmp_path / "vit" / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="safetensors"):
            load_model(where, 3)
        config = json.loads((tmp_path / "vit" / "config.json").read_text())
        config |= {
            "model_type": "mine",
            "auto_map": {
                "AutoConfig": "mine.Config",
                "AutoModelForImageClassification": "mine.Model",
            },
        }
        (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
        (tmp_path / "vit" / "mine.py").write_text("open('ran', 'w')\n")
        with pytest.raises(ValueError, match="no model"):
            load_model(where, 3)
        assert not (tmp_path / "ran").exists()

    def test_written_as_its_folder(self, vit, tmp_path):
        model = Logits(vit)
        save_weights(model, tmp_path / "out", {})
        assert same(load_model(str(tmp_path / "out"), 3), model)

    def test_its_image_processor_is_found_and_written_with_it(self, vit, tmp_path):
        where = self.folder(vit, tmp_path)
        assert processor_of(where) is None is load_model(where, 3).processor
        told = {
            "image_processor_type": "ViTImageProcessor",
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
            "size": {"height": 24, "width": 24},
        }
        path = tmp_path / "vit" / "preprocessor_config.json"
        path.write_text(json.dumps(told))
        save_weights(load_model(where, 3), tmp_path / "out", {"forget": "class:1"})
        again = processor_of(str(tmp_path / "out"))
        assert list(again.image_mean) == [0.1, 0.2, 0.3] and again.size["height"] == 24
        assert json.loads((tmp_path / "out" / "erasure.json").read_text()) == {"forget": "class:1"}
        path.write_text(json.dumps({"image_processor_type": "NoSuch"}))
        with pytest.raises(ValueError, match="cannot use the image processor"):
            load_model(where, 3)

    def test_data_takes_the_numbers_that_a_model_gives_to_its_classes(self, vit, tmp_path):
        """Folders come in the order of the alphabet; a model has an order of its own, and more."""
        vit.config.id2label = {0: "Dog", 1: "cow", 2: "cat"}
        model = load_model(self.folder(vit, tmp_path), ("cat", "dog"))
        x, y = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
        data = Data("two", x, y, x, y.flip(0), ("cat", "dog"))
        mine = data.numbered_as(model.labels)
        assert mine.train_y.tolist() == [2, 0] and mine.test_y.tolist() == [0, 2]
        assert mine.classes == ("Dog", "cow", "cat")
        assert int(make_task(mine, "class:cat").forget.y) == 2
        with pytest.raises(ValueError, match="got 'fox'; it has Dog, cow, cat"):
            replace(data, classes=("cat", "fox")).numbered_as(model.labels)
        with pytest.raises(ValueError, match="has 3 classes, the data 2"):
            load_model(str(tmp_path / "vit"), ("cat", "fox"))

    def test_swin(self, pictures_task):
        torch.manual_seed(0)
        model = swin().eval()
        for method, options in (
            ("unlink", {}),
            ("rayleigh", {"layers": "all"}),
            ("retrain", {"epochs": 1}),
            ("two-sided", {"layers": "all"}),
            ("ssd", {}),
        ):
            new = unlearn(model, pictures_task, method, seed=1, **options).model
            assert torch.isfinite(logits(new, pictures_task.test.x)).all()
            assert method == "ssd" or not same(
                new, model
            )  # ssd moves what matters ten times as much, if anything


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from erase_sd.emoji.clip import load_clip

    folder = tmp_path_factory.mktemp("clip")
    clip, tokenizer = load_clip()
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TestClip:
    def test_zero_shot_by_the_names_of_the_classes(self, clip_folder):
        from erase_sd.vision.embedded import scenes

        data = scenes(2, 2)
        model = load_model(f"clip:{clip_folder}", data.classes)
        assert isinstance(model, ZeroShot) and model.names.shape == (69, 192)
        t = make_task(data, "class:pizza")
        task = replace(t, retain=t.retain.sample(60), test=t.test.sample(40))
        assert accuracy(model, task.test) > 60
        new = unlearn(model, task).model
        assert measure(new, task)["UA"] > measure(model, task)["UA"]
        with pytest.raises(ValueError, match="needs the names"):
            load_model(f"clip:{clip_folder}", 69)
        with pytest.raises(ValueError, match="cannot be trained anew"):
            unlearn(model, task, "retrain")

    def test_its_text_tower_is_no_layer_to_edit_and_is_written_with_it(self, clip_folder, tmp_path):
        from transformers import CLIPModel

        names = ("cat", "dog", "tree")
        model = load_model(f"clip:{clip_folder}", names)
        x, y = torch.randn(9, 3, 64, 64), torch.arange(9) % 3
        s = Samples(x, y)
        from erase_sd.vision import Task

        task = Task(s[y == 0], s[y != 0], s[y != 0], s[y == 0], (0,), 3, "class:0")
        new = unlearn(model, task, "unlink", layers="all").model
        save_weights(new, tmp_path / "out", {})
        again = load_model(f"clip:{tmp_path / 'out'}", names)
        torch.testing.assert_close(logits(again, x), logits(new, x))
        before, after = (
            CLIPModel.from_pretrained(f).state_dict() for f in (clip_folder, tmp_path / "out")
        )
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        assert moved and all(k.startswith(("vision_model", "visual_projection")) for k in moved)

    def test_weights_that_are_missing_are_refused_not_drawn(self, clip_folder, tmp_path):
        shutil.copytree(clip_folder, tmp_path / "c")
        state = load_file(tmp_path / "c" / "model.safetensors")
        state.pop("visual_projection.weight")
        save_file(state, tmp_path / "c" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            ValueError,
            match="lacks 1 weights that CLIPModel needs, such as visual_projection.weight",
        ):
            load_model(f"clip:{tmp_path / 'c'}", ("a", "b"))

    def test_as_an_image_classifier_it_is_refused_with_a_hint(self, clip_folder):
        with pytest.raises(ValueError, match=r"for zero-shot CLIP give clip:"):
            load_model(str(clip_folder), 2)


def test_whole_says_what_it_could_not_load(tmp_path):
    from transformers import CLIPModel

    with pytest.raises(ValueError, match="cannot load .* as CLIPModel"):
        whole(CLIPModel, str(tmp_path))
