"""FID that runs: the network's shape, its weights' file, distances against independent code."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.linalg import sqrtm

from erase_sd.cli.main import main
from erase_sd.eval import inception
from erase_sd.eval.detectors import open_images
from erase_sd.eval.features import extract, known_as
from erase_sd.eval.inception import Inception, load_inception
from erase_sd.eval.metrics import frechet_distance


def fid(a, b):
    """Heusel et al., Eq. 6, as it is written."""
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(ca @ cb)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(root))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights under the names of the usual one, the classifier included."""
    torch.manual_seed(0)
    state = Inception(2048).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    state = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.fixture
def small(monkeypatch):
    """The same network on smaller pictures, which it takes as well and a hundred times faster."""
    monkeypatch.setattr(inception, "SIZE", 35)


def pictures(seed, count, size=24):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(128 + 20 * seed, 40, (count, 4, 4, 3)).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(p).resize((size, size)) for p in smooth]


def test_the_network_is_inception_v3_without_its_classifier():
    network = Inception(2048)
    assert sum(p.numel() for p in network.parameters()) == 21_785_568  # published
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 20, 30)).shape == (1, 2048)
    names = {n.rsplit(".", 2)[0] for n in network.state_dict()}
    for name in ("Mixed_6e.branch7x7dbl_5", "Mixed_7c.branch3x3dbl_3b", "Mixed_5b.branch_pool",
                 "Mixed_7a.branch7x7x3_4", "Mixed_6a.branch3x3", "Conv2d_4a_3x3"):  # fmt: skip
        assert name in names, name
    assert len(names) == 94  # convolutions


def test_pooling_is_the_graphs_of_2015():
    x = torch.ones(1, 2048, 3, 3)
    x[:, :, 1, 1] = 5
    network = Inception(2048)
    seen = []
    for name in ("Mixed_7b", "Mixed_7c", "Mixed_5b"):
        block = network.get_submodule(name)
        given = x[:, : block.branch_pool.conv.in_channels]
        block.branch_pool.register_forward_pre_hook(lambda m, args: seen.append(args[0][0, 0]))
        block(given)
    assert seen[0][0, 0] == 2 and seen[2][0, 0] == 2  # the mean of four, padding left out
    assert seen[1].eq(5).all()  # the last takes the maximum


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_features_of_a_file_are_what_the_layers_give(weights, tmp_path, ending):
    path = weights
    if ending == ".safetensors":
        path = tmp_path / "random.safetensors"
        save_file(torch.load(weights, weights_only=True), path)
    (image,) = pictures(0, 1)
    network = load_inception(str(path), 64)
    state = torch.load(weights, weights_only=True)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    x = torch.nn.functional.interpolate(x.float(), (299, 299), mode="bilinear")
    for name, stride, padding in (("1a", 2, 0), ("2a", 1, 0), ("2b", 1, 1)):
        layer = f"Conv2d_{name}_3x3"
        x = torch.nn.functional.conv2d(x, state[f"{layer}.conv.weight"], None, stride, padding)
        mean, var = (state[f"{layer}.bn.running_{k}"][:, None, None] for k in ("mean", "var"))
        scale, shift = (state[f"{layer}.bn.{k}"][:, None, None] for k in ("weight", "bias"))
        x = ((x - mean) / (var + 0.001).sqrt() * scale + shift).relu()
    expected = torch.nn.functional.max_pool2d(x, 3, 2).mean((2, 3))
    found = inception.features_of(network, [image])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_fid_agrees_with_scipy_and_torchmetrics(weights, small):
    from torchmetrics.image.fid import FrechetInceptionDistance

    one, two = pictures(0, 90), pictures(1, 80)
    a, b = (extract(f"inception-64:{weights}", images) for images in (one, two))
    assert a.shape == (90, 64)
    expected = fid(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4) and expected > 1e-3
    metric = FrechetInceptionDistance(feature=load_inception(str(weights), 64)).set_dtype(
        torch.float64
    )
    for images, real in ((one, True), (two, False)):
        stack = np.stack([np.asarray(i) for i in images])
        metric.update(torch.from_numpy(stack).permute(0, 3, 1, 2), real=real)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-3)


def test_other_weights_are_told_apart_and_the_usual_are_not(weights, monkeypatch):
    assert known_as(f"inception-64:{weights}").startswith("inception-64@")
    monkeypatch.setattr(inception, "STANDARD", inception.file_hash(weights)[:8])
    assert known_as(f"inception-64:{weights}") == "inception-64" == known_as("inception-64")


def test_a_file_of_something_else_is_refused(tmp_path, weights):
    (tmp_path / "a.pth").write_bytes(b"no")
    torch.save({"x": torch.zeros(1)}, tmp_path / "b.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors")
    state = torch.load(weights, weights_only=True)
    torch.save(state | {"Conv2d_1a_3x3.conv.weight": torch.zeros(2)}, tmp_path / "d.pth")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match="does not hold InceptionV3's weights: "):
            load_inception(str(path), 64)


PROTOCOL = """
rows: {emoji: objects, count: 2, keep: 6, groups: {cat: [cat], car: [car]}}
forget: {cat: [cat], car: [car]}
generation: {steps: 1, guidance: 3.0, batch: 8}
detector: {name: judge}
metrics: [frechet, kid]
features: inception-64
"""


def test_a_run_against_the_original_and_against_real_pictures(weights, small, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(PROTOCOL)
    for name, seed in (("dog", 2), ("pizza", 3)):
        (tmp_path / "real" / name).mkdir(parents=True)
        for i, image in enumerate(pictures(seed, 5)):
            image.save(tmp_path / "real" / name / f"{i}.png")
    run = ["eval", "run", str(tmp_path / "p.yaml"), "--method", "unlink"]
    where = ["--out", str(tmp_path / "out"), "--real", str(tmp_path / "real")]
    assert main([*run, *where]) == 2
    assert "expected --inception" in capsys.readouterr().err
    assert main([*run, *where, "--inception", str(weights)]) == 0
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    numbers = result["variants"]["unlink"]
    lines = (tmp_path / "out" / "unlink" / "manifest.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    network = load_inception(str(weights), 64)

    def seen(variant, keep):
        files = [tmp_path / "out" / variant / r["file"] for r in rows if keep(r)]
        return inception.features_of(network, open_images(files))

    def stays(row):
        return row["role"] == "retain"

    told = numbers["frechet to the original"]
    expected = frechet_distance(seen("original", stays), seen("unlink", stays))
    assert told["value"] == pytest.approx(expected, abs=1e-5) and set(told["groups"]) == {
        "cat", "car"
    }  # fmt: skip
    gone = seen("unlink", lambda r: not stays(r))
    assert told["forgotten to the rest"] == pytest.approx(
        frechet_distance(seen("original", stays), gone), abs=1e-4
    )
    cat = [seen(v, lambda r: stays(r) and r["group"] == "cat") for v in ("original", "unlink")]
    assert told["groups"]["cat"] == pytest.approx(frechet_distance(*cat), abs=1e-5)
    real = {
        n: inception.features_of(network, pictures(s, 5)) for n, s in (("dog", 2), ("pizza", 3))
    }
    told = numbers["frechet to real"]
    everything = np.concatenate(list(real.values()))
    assert told["real images"] == 10
    assert told["value"] == pytest.approx(
        frechet_distance(everything, seen("unlink", stays)), abs=1e-4
    )
    assert told["everything"] == pytest.approx(
        frechet_distance(everything, seen("unlink", lambda r: True)), abs=1e-4
    )
    per = {n: [r for r in rows if stays(r) and r["want"] == n] for n in real}
    assert set(told["classes"]) == {n for n, found in per.items() if len(found) > 1}
    for name in told["classes"]:
        own = seen("unlink", lambda r, name=name: stays(r) and r["want"] == name)
        assert told["classes"][name] == pytest.approx(frechet_distance(real[name], own), abs=1e-4)
    assert "kid to real" in numbers
    assert result["protocol"]["features"].startswith("inception-64@")
