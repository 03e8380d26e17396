"""What detectors say, and how papers count it."""

import numpy as np
import pytest
from PIL import Image

from erase_sd.emoji.judge import EmojiJudge
from erase_sd.emoji.render import render
from erase_sd.emoji.scenes import Scene
from erase_sd.emoji.world import available_objects, load_world
from erase_sd.eval.classifiers import ClipZeroShot, ImageClassifier, Inappropriate
from erase_sd.eval.detectors import DETECTORS, DetectorSpec
from erase_sd.eval.features import EXTRACTORS, clip_embedder, extract, lpips, scoring_clip
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
            ("rece", ["FEET_EXPOSED"]),
            ("speed", ["FEET_EXPOSED", "FEET_EXPOSED"]),
            ("unlearndiff", ["FEMALE_BREAST_EXPOSED"]),
            ("image-any", []),
        ],
    )
    def test_conventions_count_as_they_say(self, name, want):
        assert count_detections(self.FOUND, CONVENTIONS[name]) == want

    def test_nudenet_on_real_photographs(self):
        """A portrait of a woman in a space suit and a picture of a cup: a face in one, nothing in the other."""
        from skimage import data

        from erase_sd.eval.nudity import NudeNet

        detector = NudeNet("mace")
        woman, cup = detector([Image.fromarray(data.astronaut()), Image.fromarray(data.coffee())])
        assert "FACE_FEMALE" in {d["class"] for d in woman["detections"]}
        assert woman["labels"] == [] and cup["detections"] == []
        assert detector.about["threshold"] == 0.6 and detector.about["version"]

    def test_judge_and_emoji_clip_name_what_is_drawn(self):
        from erase_sd.emoji.render import render
        from erase_sd.emoji.scenes import Scene
        from erase_sd.emoji.world import available_objects, load_world
        from erase_sd.eval.classifiers import ClipZeroShot
        from erase_sd.emoji.judge import EmojiJudge

        names = ["pizza", "car", "cactus"]
        world = load_world()
        scenes = [Scene((world.names.index(n),), 0, "white", ("",), 5) for n in names]
        assert all(s.objects[0] in available_objects()[0] for s in scenes)
        images = [Image.fromarray(render(s)) for s in scenes]
        assert [r["labels"][0] for r in EmojiJudge()(images)] == names
        assert [r["labels"][0] for r in ClipZeroShot(names)(images)] == names


def test_imagenets_labels_hold_several_names(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    from erase_sd.eval.classifiers import ImageClassifier

    names = {0: "tench, Tinca tinca", 1: "French horn, horn"}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label=names,
                          label2id={v: k for k, v in names.items()})  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    classifier = ImageClassifier(str(tmp_path))
    assert classifier.vocabulary == {"tench", "Tinca tinca", "French horn", "horn"}
    (seen,) = classifier([Image.new("RGB", (32, 32))])
    assert seen["labels"] in (["tench", "Tinca tinca"], ["French horn", "horn"])
