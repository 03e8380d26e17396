"""The command on models and pictures in folders."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.cli.main import main

FAST = ("--model", "mlp", "--train", "--epochs", "4", "--data", "digits")


def told(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def images(tmp_path):
    """Two classes of pictures in folders, as a user brings them."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for n in range(4):
                picture = rng.integers(100 * i, 100 * i + 100, (20, 30, 3)).astype(np.uint8)
                Image.fromarray(picture).save(tmp_path / "images" / split / name / f"{n}.png")
    return tmp_path / "images"


def tiny_vit(**more):
    """Of 24 x 24 images, two classes that are named as the folders are."""
    from transformers import ViTConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "image_size": 24, "patch_size": 8}
    return ViTConfig(**shape, **({"id2label": {0: "cat", 1: "dog"}} | more))


def test_a_transformers_folder_on_an_image_folder(images, tmp_path, capsys):
    """The sizes and constants of its preprocessor are taken, and the written folder loads again."""
    from transformers import ViTForImageClassification

    ViTForImageClassification(tiny_vit()).save_pretrained(tmp_path / "vit")
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": 24, "width": 24},
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    argv = [
        "vision",
        "unlearn",
        "--model",
        str(tmp_path / "vit"),
        "--data",
        str(images),
        "--forget",
        "class:cat",
    ]
    assert main([*argv, "--out", str(tmp_path / "new"), "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["options"]["rank"] == 1 and "note:" not in found.err
    written = json.loads((tmp_path / "new" / "erasure.json").read_text())
    assert written["forget"] == "class:cat" and written["options"]["epsilon"] == 0.1
    argv[3] = str(tmp_path / "new")  # with its image processor: nothing to note
    assert main([*argv, "--method", "unlink", "--json"]) == 0
    assert "note:" not in capsys.readouterr().err
    (tmp_path / "new" / "preprocessor_config.json").unlink()
    assert main([*argv, "--size", "24", "--json"]) == 0
    assert "has no preprocessor_config.json; images are normalised" in capsys.readouterr().err


def test_the_models_order_of_classes_is_taken(images, tmp_path, capsys):
    """Three classes, two of them in the data: the answer is right where the model's number is."""
    from transformers import ViTForImageClassification, ViTImageProcessor

    network = ViTForImageClassification(tiny_vit(id2label={0: "dog", 1: "cow", 2: "Cat"}))
    with torch.no_grad():  # whatever it sees, it says cat
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    network.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "vit")
    argv = ["vision", "unlearn", "--model", str(tmp_path / "vit"), "--data", str(images), "--json"]
    assert main([*argv, "--forget", "class:Cat"]) == 0
    before = told(capsys)["before"]
    assert before["UA"] == 0 and before["RA"] == 0
    assert main([*argv, "--forget", "class:2"]) == 0
    assert told(capsys)["before"] == before
    (tmp_path / "names.txt").write_text("cow\ndog\n")
    assert main([*argv, "--forget", "class:1", "--classes-file", str(tmp_path / "names.txt")]) == 0
    (tmp_path / "names.txt").write_text("pig\ndog\n")
    assert main([*argv, "--forget", "class:1", "--classes-file", str(tmp_path / "names.txt")]) == 2
    assert "has 3 classes, the data 2" in capsys.readouterr().err


def test_zero_shot_clip_on_an_image_folder(images, tmp_path, capsys):
    from erase_sd.emoji.clip import load_clip

    clip, tokenizer = load_clip()
    clip.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    (tmp_path / "names.txt").write_text("tabby cat\nold dog\n")
    argv = [
        "vision",
        "unlearn",
        "--model",
        f"clip:{tmp_path / 'clip'}",
        "--data",
        str(images),
        "--size",
        "64",
        "--classes-file",
        str(tmp_path / "names.txt"),
        "--forget",
        "class:tabby cat",
        "--json",
    ]
    assert main(argv) == 0
    assert told(capsys)["forget"] == "class:tabby cat"
    (tmp_path / "names.txt").write_text("cat\n")
    assert main(argv) == 2
    assert "expected 2 names" in capsys.readouterr().err
