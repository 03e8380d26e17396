"""What detectors say, and how papers count it."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from erase_sd.emoji.clip import load_clip
from erase_sd.emoji.judge import EmojiJudge
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import Scene
from erase_sd.emoji.world import available_objects, load_world
from erase_sd.eval.classifiers import ClipZeroShot, ImageClassifier, Inappropriate
from erase_sd.eval.detectors import DETECTORS, DetectorSpec
from erase_sd.eval.features import EXTRACTORS, any_clip, clip_embedder, extract, lpips, scoring_clip
from erase_sd.eval.nudity import CONVENTIONS, NudeNet, count_detections


class TestDetectors:
    FOUND = [
        {"class": "FEET_EXPOSED", "score": 0.7},
        {"class": "FEET_EXPOSED", "score": 0.65},
        {"class": "FEMALE_BREAST_EXPOSED", "score": 0.5},
        {"class": "FACE_FEMALE", "score": 0.9},
    ]

    @pytest.mark.parametrize(
        "name,want",
        [
            ("mace", ["FEET_EXPOSED", "FEET_EXPOSED"]),
            ("salun", ["FEET_EXPOSED", "FEET_EXPOSED", "FEMALE_BREAST_EXPOSED"]),
            ("rece", ["FEET_EXPOSED"]),
            ("speed", ["FEET_EXPOSED", "FEET_EXPOSED"]),
            ("unlearndiff", ["FEMALE_BREAST_EXPOSED"]),
            ("image-any", []),
        ],
    )
    def test_conventions_count_as_they_say(self, name, want):
        assert count_detections(self.FOUND, CONVENTIONS[name]) == want

    def test_nudenet_on_real_photographs(self):
        """A woman in a space suit and a cup: a face in one, nothing in the other."""
        from skimage import data

        detector = NudeNet("mace")
        woman, cup = detector([Image.fromarray(data.astronaut()), Image.fromarray(data.coffee())])
        assert "FACE_FEMALE" in {d["class"] for d in woman["detections"]}
        assert woman["labels"] == [] and cup["detections"] == []
        assert detector.about["threshold"] == 0.6 and detector.about["version"]

    def test_judge_and_emoji_clip_name_what_is_drawn(self):

        names = ["pizza", "car", "cactus"]
        world = load_world()
        scenes = [Scene((world.names.index(n),), 0, "white", ("",), 5) for n in names]
        assert all(s.objects[0] in available_objects()[0] for s in scenes)
        images = [Image.fromarray(render(s)) for s in scenes]
        assert [r["labels"][0] for r in EmojiJudge()(images)] == names
        assert [r["labels"][0] for r in ClipZeroShot(names)(images)] == names


def test_imagenets_labels_hold_several_names(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    names = {0: "tench, Tinca tinca", 1: "French horn, horn"}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label=names,
                          label2id={v: k for k, v in names.items()})  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    classifier = ImageClassifier(str(tmp_path))
    assert classifier.vocabulary == {"tench", "Tinca tinca", "French horn", "horn"}
    (seen,) = classifier([Image.new("RGB", (32, 32))])
    assert seen["labels"] in (["tench", "Tinca tinca"], ["French horn", "horn"])
    without(tmp_path, "classifier.1.weight")
    with pytest.raises(ValueError, match="lacks 1 weights .* such as classifier.1.weight"):
        ImageClassifier(str(tmp_path))


def test_a_pickle_is_never_a_detectors_weights(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    network = ResNetForImageClassification(config)
    network.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    for load in (ImageClassifier, any_clip):
        with pytest.raises(ValueError, match="cannot load"):
            load(str(tmp_path))


def without(folder, name):
    """Take a tensor out of a folder's file."""
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_clip_that_is_not_whole_measures_nothing(tmp_path):
    clip, tokenizer = load_clip()
    clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    without(tmp_path, "visual_projection.weight")
    with pytest.raises(ValueError, match="lacks 1 weights .* such as visual_projection.weight"):
        clip_embedder(str(tmp_path))


def test_lpips_without_its_backbone_says_so(monkeypatch):
    """Whatever is installed here: the library's module cannot be imported."""
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    with pytest.raises(ValueError, match="needs torchvision.*take lpips out"):
        lpips(np.zeros((2, 64, 64, 3), np.float32), np.zeros((2, 64, 64, 3), np.float32))


@pytest.mark.parametrize(
    "where,error",
    [
        ("", "expected --inception FILE or OWNER/NAME:FILE, got ''; pt_inception-2015"),
        (":nowhere.pth", "got 'nowhere.pth'"),
        (":some/one:weights.pth", "weights.pth of some/one cannot be had here"),
    ],
)
def test_inception_out_of_reach_says_so(where, error):
    with pytest.raises(ValueError, match=error):
        extract(f"inception-64{where}", [Image.new("RGB", (8, 8))])


@pytest.mark.parametrize(
    "name,error",
    [
        ("none", "no extractor 'none'; there are judge"),
        ("judge:x", "take no argument, got 'x'"),
        ("emoji-clip:x", "takes no argument, got 'x'"),
        ("clip:/no/such/folder", "cannot load the CLIP model /no/such/folder"),
    ],
)
def test_extractors_are_known_by_name(name, error):
    with pytest.raises(ValueError, match=error):
        extract(name, [Image.new("RGB", (64, 64))])


def test_extractors_give_a_row_for_each_picture_whatever_the_batch():
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(67)]
    for name in ("judge", "emoji-clip"):
        rows = extract(name, images)
        assert len(rows) == 67
        assert np.allclose(rows[66], extract(name, images[66:])[0], atol=1e-5)


def test_the_score_is_by_the_features_own_clip(monkeypatch):
    """By emoji-clip beside the judge, by a protocol's own CLIP, else by the papers'."""
    asked = []
    monkeypatch.setattr("erase_sd.eval.features.clip_embedder", asked.append)
    for features in ("judge", "emoji-clip", "clip:./mine", "inception-2048"):
        scoring_clip(features)
    assert asked == ["emoji-clip", "emoji-clip", "./mine", "openai/clip-vit-large-patch14"]


def test_a_clip_of_texts_and_pictures_agrees_with_itself():
    embed = clip_embedder("emoji-clip")
    texts = embed(["a photo of a cat", "a photo of a car"])
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "spec,error",
    [
        (DetectorSpec("eye"), "no detector 'eye'; there are nudenet"),
        (DetectorSpec("nudenet", {"convention": "mine"}), "a NudeNet convention of mace"),
        (DetectorSpec("judge", {"top": 3}), "detector judge:"),
        (DetectorSpec("clip", {"labels": ["one"]}), "at least two labels"),
        (DetectorSpec("classifier", {"model": "/no/such"}), "cannot load the classifier /no/such"),
    ],
)
def test_detectors_are_known_by_name_and_options(spec, error):
    with pytest.raises(ValueError, match=error):
        spec.load()


def test_registries_name_what_there_is():
    for name, where in (DETECTORS | EXTRACTORS).items():
        assert callable(__import__("erase_sd._lazy", fromlist=["x"]).resolve(where)), name


def test_inappropriate_is_the_nearer_of_two_captions():
    """By emoji-clip, which knows neither: the label stands where the second caption is nearer."""
    detector = Inappropriate(model="emoji-clip")
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    plain = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    images = [Image.fromarray(p) for p in pixels] + plain
    embed = clip_embedder("emoji-clip")
    nearer = (embed(images) @ embed(list(Inappropriate.CAPTIONS)).T).argmax(1)
    told = [bool(r["labels"]) for r in detector(images)]
    assert told == [bool(i) for i in nearer]
