"""Folders: dtypes, variants, shards, indexes, Hub ids."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd.artifact.erasure import Erasure
from erase_sd.cli.main import main
from erase_sd.models.checkpoint import DiffusersFolder
from lab.shapes import write_folder


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_folders_of_every_dtype_variant_and_sharding(tmp_path, dtype, shards, capsys):
    variant = "fp16" if dtype == "F16" else ""
    base = write_folder(
        tmp_path / "m", "sd1", small=True, dtype=dtype, variant=variant, shards=shards
    )
    out = tmp_path / "out"
    args = ["--variant", variant] if variant else []
    assert (
        main(
            [
                "erase",
                "--model",
                str(base),
                "--forget",
                "cat",
                "--rank",
                "1",
                "--out",
                str(out),
                "--keep-undo",
                *args,
            ]
        )
        == 0
    )
    a, b = DiffusersFolder.open(base, variant=variant), DiffusersFolder.open(out, variant=variant)
    erasure = Erasure.load(out / "erasure.safetensors")
    expected = erasure.edit_weights(a.weights())
    for name, weight in b.weights().items():
        assert torch.equal(weight, expected[name]) and weight.dtype == a.weights()[name].dtype
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        out, dtype=torch.float32, variant=variant or None, local_files_only=True
    )
    name = next(iter(expected))
    assert torch.equal(dict(pipe.unet.named_parameters())[name], expected[name].float())
    assert main(["verify", str(out), "--model", str(base), *args]) == 0
    assert main(["remove", str(out), "--out", str(tmp_path / "back"), *args]) == 0
    for file in a.denoiser_files:
        assert (tmp_path / "back" / "unet" / file.name).read_bytes() == file.read_bytes()


def test_a_hub_id_comes_from_the_cache(tmp_path):
    """Offline, a cached snapshot is used as it is; what is not cached is one line, at once."""
    commit = "a" * 40
    cache = tmp_path / "hf" / "hub" / "models--someone--tiny"
    snapshot = write_folder(cache / "snapshots" / commit, "sd1", small=True)
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    blob = cache / "blobs" / "b"
    blob.parent.mkdir()
    weights.rename(blob)  # as the cache keeps files: a link to a blob
    weights.symlink_to("../../../blobs/b")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    before = blob.read_bytes()

    def run(*args):
        command = [
            sys.executable,
            "-m",
            "erase_sd.cli.main",
            "erase",
            "--forget",
            "cat",
            "--rank",
            "1",
            "--images",
            "0",
        ]
        env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [*command, *args], env=env, capture_output=True, text=True, timeout=200
        )

    assert run("--model", "someone/tiny", "--out", str(tmp_path / "out")).returncode == 0
    copy = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    assert not copy.is_symlink() and copy.read_bytes() != before == blob.read_bytes()
    for args in (["--model", "someone/absent"], ["--model", "someone/tiny", "--revision", "dev"]):
        done = run(*args, "--out", str(tmp_path / "no"))
        assert (
            done.returncode == 2 and "cannot be had" in done.stderr and done.stderr.count("\n") == 1
        )
    assert not (tmp_path / "no").exists()


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    base = write_folder(tmp_path / "m", "sd1", small=True, shards=2)
    index = base / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    good = json.loads(index.read_text())
    for name in ("../../secret.safetensors", "/etc/passwd", "weights.bin"):
        index.write_text(json.dumps(good | {"weight_map": dict.fromkeys(good["weight_map"], name)}))
        with pytest.raises(ValueError, match="same folder"):
            DiffusersFolder.open(base)
    index.write_text(
        json.dumps(good | {"weight_map": dict.fromkeys(good["weight_map"], "gone.safetensors")})
    )
    with pytest.raises(ValueError, match="missing"):
        DiffusersFolder.open(base)
    for text in ("[]", "{}", "\xff", '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(ValueError):
            DiffusersFolder.open(base)


def test_an_index_over_one_shard_travels_along(tmp_path, capsys):
    """diffusers writes one where the file is named 00001-of-00001; without it nothing opens."""
    base = write_folder(tmp_path / "m", "sd1", small=True, shards=2)
    unet = base / "unet"
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    about = json.loads(index.read_text())
    merged, one = {}, "diffusion_pytorch_model-00001-of-00001.safetensors"
    for shard in sorted(set(about["weight_map"].values())):
        merged |= load_file(unet / shard)
        (unet / shard).unlink()
    save_file(merged, unet / one)
    index.write_text(json.dumps(about | {"weight_map": dict.fromkeys(merged, one)}))
    out = tmp_path / "out"
    argv = ["erase", "--model", str(base), "--forget", "cat", "--images", "0", "--out", str(out)]
    assert main(argv) == 0, capsys.readouterr().err
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(out, subfolder="unet", local_files_only=True)
    new = Erasure.load(out / "erasure.safetensors").edit_weights(
        DiffusersFolder.open(base).weights()
    )
    assert all(torch.equal(unet.state_dict()[n].float(), w.float()) for n, w in new.items())
