"""Pickles, averaged weights and other copies: refused or left behind."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd.artifact.erasure import Erasure
from erase_sd.cli.main import main
from erase_sd.models.ldm_names import UNET
from lab.shapes import TOKENIZER
from tests.models.conftest import single


def test_a_pickle_is_refused_unless_asked_for(models, tmp_path, capsys):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(models["sd1"][1]), "epoch": 3}, file)
    args = [
        "erase",
        "--model",
        str(file),
        "--forget",
        "cat",
        "--rank",
        "1",
        "--tokenizer",
        str(TOKENIZER),
    ]
    assert main([*args, "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main([*args, "--out", str(tmp_path / "x.safetensors"), "--allow-pickle"]) == 0
    same = Erasure.load(tmp_path / "x.erasure.safetensors").edit_weights(
        single(models["sd1"][1]).weights()
    )
    assert all(
        torch.equal(w, same[n]) for n, w in single(tmp_path / "x.safetensors").weights().items()
    )


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/erase-sd-was-here", "w"))


def test_a_pickle_that_runs_code_does_not(tmp_path, capsys):
    import pickle

    file = tmp_path / "model.ckpt"
    file.write_bytes(pickle.dumps({"state_dict": Bomb()}))
    args = [
        "erase",
        "--model",
        str(file),
        "--forget",
        "cat",
        "--allow-pickle",
        "--out",
        str(tmp_path / "x.safetensors"),
    ]
    assert main(args) == 2
    assert "more than tensors" in capsys.readouterr().err
    assert not os.path.exists("/tmp/erase-sd-was-here")


def test_a_file_with_averaged_weights_is_refused_before_anything_is_written(
    models, tmp_path, capsys
):
    """Training's running average is the whole concept once more."""
    file = models["sd1"][1]
    state = load_file(file)
    name = next(n for n in state if n.startswith(UNET))
    state["model_ema." + name.removeprefix("model.").replace(".", "")] = state[name].clone()
    save_file(state, tmp_path / "ema.safetensors")
    out = tmp_path / "out.safetensors"
    argv = ["erase", "--model", str(tmp_path / "ema.safetensors"), "--tokenizer", str(TOKENIZER)]
    code = main([*argv, "--forget", "cat", "--images", "0", "--out", str(out)])
    assert code == 2 and "averaged copy of the weights" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "unet/model.onnx_data", "unet/weights.pb", "model.gguf", "x.h5"]
)
def test_other_copies_of_the_weights_are_left_behind_and_noticed(models, tmp_path, capsys, name):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(models["sd1"][0], base)
    (base / name).write_bytes(b"weights")
    out = tmp_path / "out"
    assert (
        main(["erase", "--model", str(base), "--forget", "cat", "--images", "0", "--out", str(out)])
        == 0
    )
    assert not (out / name).exists()
    assert main(["verify", str(out), "--model", str(base)]) == 0
    (out / name).write_bytes(b"weights")
    assert main(["verify", str(out), "--model", str(base)]) == 1
    assert "no other weights      FAILED" in capsys.readouterr().out
