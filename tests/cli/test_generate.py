"""`generate`: parse, draw, print."""

import json

import numpy as np
import pytest
from PIL import Image

from erase_sd.cli.main import main


def draw(path, *options):
    line = ["generate", "--prompt", "a cat", "--steps", "2", "--out", str(path), *map(str, options)]
    assert main(line) == 0
    return np.asarray(Image.open(path))


def test_an_erasure_is_applied_at_a_scale(cat, tmp_path, capsys):
    saved = cat.save(tmp_path / "cat.safetensors")
    plain = draw(tmp_path / "a.png")
    assert np.array_equal(draw(tmp_path / "b.png", "--erasure", saved, "--scale", 0), plain)
    assert not np.array_equal(draw(tmp_path / "c.png", "--erasure", saved), plain)
    capsys.readouterr()
    draw(tmp_path / "d.png", "--count", 2, "--seed", 4, "--json")
    assert json.loads(capsys.readouterr().out)["seeds"] == [4, 5]


def test_the_usual_guidance_is_the_models(tmp_path):
    assert np.array_equal(draw(tmp_path / "a.png"), draw(tmp_path / "b.png", "--guidance", 3))
    assert not np.array_equal(draw(tmp_path / "c.png", "--guidance", 7.5), draw(tmp_path / "d.png"))


@pytest.mark.parametrize("options", [["--count", "0"], ["--steps", "0"], ["--device", "tpu"]])
def test_what_cannot_be_drawn_is_refused_before_a_file_is_there(tmp_path, options, capsys):
    line = ["generate", "--prompt", "a cat", "--out", str(tmp_path / "a.png"), *options]
    assert main(line) == 2
    assert not list(tmp_path.iterdir())
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_picture_that_is_there_stays(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"mine")
    assert main(["generate", "--prompt", "a cat", "--out", str(tmp_path / "a.png")]) != 0
    assert (tmp_path / "a.png").read_bytes() == b"mine" and "--force" in capsys.readouterr().err
