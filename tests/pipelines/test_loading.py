"""Where models lie, what is usual for them, and one picture of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.emoji.models import EMOJI_SD
from erase_sd.eval.drawing import Request, picture, write_picture
from erase_sd.models.embedded import EMBEDDED, EMBEDDED_MODELS, Usual, usual
from erase_sd.pipelines.loading import check_device, load_pipeline, model_path
from erase_sd.pipelines.sampling import generate


def test_the_embedded_model_is_known_by_name_and_by_place(tmp_path, monkeypatch):
    assert model_path(EMBEDDED) == EMBEDDED_MODELS[EMBEDDED].path == EMOJI_SD
    assert usual(EMOJI_SD).judge == "judge" and usual(tmp_path).judge is None
    assert usual(EMOJI_SD) == Usual(guidance=3.0, images=8, judge="judge")
    assert usual(tmp_path) == Usual(guidance=7.5, images=0, judge=None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / EMBEDDED).mkdir()
    assert model_path(EMBEDDED) == Path(EMBEDDED)  # a folder of that name is what was meant


def test_a_hub_id_out_of_reach_is_told_in_a_line(monkeypatch):
    def refuse(*args, **options):
        assert options["trust_remote_code"] is False and options["use_safetensors"] is True
        raise OSError("no such thing. And a long story")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", refuse)
    with pytest.raises(ValueError, match="at revision main it cannot be had: no such thing$"):
        model_path("nobody/nothing", revision="main")


@pytest.mark.parametrize(
    "device,error", [("tpu", "expected --device cpu, cuda or mps"), ("cuda", "no cuda device")]
)
def test_devices_are_checked(device, error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=error):
        check_device(device)
    with pytest.raises(ValueError, match=error):
        load_pipeline(EMOJI_SD, device=device)


def test_guidance_is_what_is_usual_unless_told(pipe):
    plain, told, other = (
        np.asarray(generate(pipe, ["a cat"], [1], steps=2, guidance=g)[0]) for g in (None, 3.0, 7.5)
    )
    assert np.array_equal(plain, told) and not np.array_equal(plain, other)
    with pytest.raises(ValueError, match="as many seeds"):
        generate(pipe, ["a cat"], [1, 2])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        generate(pipe, ["a cat"], [1], steps=0)


def test_a_picture_is_one_image_or_a_grid_of_prompts_by_seeds(pipe):
    request = Request(("a cat", "a car"), count=3, seed=5, steps=2, guidance=3.0)
    assert request.seeds == [5, 6, 7]
    grid = np.asarray(picture(pipe, request))
    assert grid.shape == (2 * 64, 3 * 64, 3)
    (alone,) = generate(pipe, ["a car"], [6], steps=2, guidance=3.0)
    cell = grid[64:, 64:128].astype(int)
    assert np.abs(cell - np.asarray(alone, int)).max() <= 1  # the batch moves the last bits
    one = picture(pipe, Request(("a cat",), seed=5, steps=2, guidance=3.0))
    assert one.size == (64, 64)
    for wrong in ({"count": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            Request(("a cat",), **wrong)


def test_scale_multiplies_an_erasure(pipe, cat):
    request = Request(("a cat",), steps=2, guidance=3.0)
    plain = np.asarray(picture(pipe, request))
    weights = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
    assert np.array_equal(np.asarray(picture(pipe, request, erasure=cat, scale=0.0)), plain)
    pipe.restore()
    half = np.asarray(picture(pipe, request, erasure=cat, scale=0.5))
    moved = {n: p.detach() - weights[n] for n, p in pipe.unet.named_parameters()}
    pipe.restore()
    whole = np.asarray(picture(pipe, request, erasure=cat))
    assert not np.array_equal(half, plain) and not np.array_equal(half, whole)
    name = max(moved, key=lambda n: float(moved[n].abs().max()))
    full = dict(pipe.unet.named_parameters())[name].detach() - weights[name]
    torch.testing.assert_close(2 * moved[name], full, atol=1e-4, rtol=1e-3)


def test_a_picture_is_written_whole_and_over_nothing(tmp_path):
    image = Image.new("RGB", (4, 4), "red")
    write_picture(image, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises((FileExistsError, ValueError)):
        write_picture(image, tmp_path / "a.png")
    write_picture(Image.new("RGB", (4, 4), "blue"), tmp_path / "a.png", force=True)
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("link", ["pipelines", "prompts", "eval"])
def test_top_level_links_point_into_the_package(link):
    root = Path(__file__).parents[2]
    assert (root / link).is_symlink() and (root / link).resolve() == root / "erase_sd" / link


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("unet", ["transformers", "pipeline"]),
        ("vae", ["os", "system"]),
        ("tokenizer", ["transformers", 5]),
        ("scheduler", [["diffusers"], "DDIMScheduler"]),
        ("text_encoder", None),
        ("_class_name", "os.system"),
        ("_class_name", ["x", "y"]),
    ],
)
def test_a_model_names_classes_of_its_two_libraries_alone(part, names, tmp_path):
    folder = shutil.copytree(EMOJI_SD, tmp_path / "m")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: names}))
    with pytest.raises(ValueError, match="expected a (class|pipeline) of diffusers") as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)
