"""Transformers in one file, under their original names: erasures go into them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.erasure import Erasure
from erase_sd.cli.main import main
from erase_sd.models.architectures import POOLED, TOKENS, by_name
from erase_sd.models.comfyui_names import COMFYUI
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.transformer_files import _MARKS, find

WIDTHS = {TOKENS: 6, POOLED: 5}
MARKS = {name: (marks, others) for name, marks, others in _MARKS}


def contents(name, prefix):
    """As much of a model's file as tells what it is: what reads text, its biases, its marks."""
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for ours, theirs in COMFYUI[name].items():
        site = by_name(name).site(f"{ours}.weight")
        tensors[f"{prefix}{theirs}.weight"] = torch.randn(4, WIDTHS[site.stream], generator=g)
        tensors[f"{prefix}{theirs}.bias"] = torch.randn(4, generator=g)
    for mark in MARKS[name][0]:
        tensors[f"{prefix}{mark}0.weight"] = torch.randn(3, generator=g)
    return tensors | {"vae.weight": torch.randn(2, 2, generator=g)}


def erasure(name, weights):
    sites = [by_name(name).site(n) for n in weights]
    edits = {}
    for stream in {site.stream for site in sites}:
        q, _ = torch.linalg.qr(torch.randn(WIDTHS[stream], 1, dtype=torch.float64))
        edits[stream] = LowRankEdit(q, q).rounded()
    concept = ErasedConcept(name="cat", right=edits, forget=("cat",), method="unlink")
    return Erasure((concept,), name, text_encoder="of the folder").bound_to(weights)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", COMFYUI)
def test_an_erasure_goes_into_the_file_and_nothing_else_changes(name, prefix, tmp_path, capsys):
    file, out = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    save_file(contents(name, prefix), file)
    model = open_checkpoint(file)
    assert model.architecture.name == name
    weights = model.weights()
    made = erasure(name, weights)
    made.save(tmp_path / "cat.safetensors")
    call = ["apply", str(tmp_path / "cat.safetensors"), "--model", str(file), "--out", str(out)]
    assert main(call) == 0, capsys.readouterr().err
    before, after = load_file(file), load_file(out)
    want = {model.where[n][1]: w for n, w in made.edit_weights(weights).items()}
    assert len(want) == len(COMFYUI[name])
    for key, value in before.items():
        torch.testing.assert_close(after[key], want.get(key, value), atol=0, rtol=0)
        assert torch.equal(after[key], value) == (key not in want)


def test_every_name_that_comfyui_has_is_told_apart():
    assert MARKS.keys() == COMFYUI.keys()
    for name in COMFYUI:
        assert find(contents(name, ""))[0].name == name


def test_what_cannot_be_done_is_refused_by_name(tmp_path, capsys):
    file, tensors = tmp_path / "flux.safetensors", contents("flux", "")
    save_file(tensors, file)
    out = str(tmp_path / "out.safetensors")
    assert main(["erase", "--model", str(file), "--forget", "cat", "--out", out]) == 2
    told = capsys.readouterr().err
    assert "is a flux transformer" in told and "apply ERASURE --model FILE" in told
    save_file(tensors | {"txt_in.scale_weight": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"flux transformer is quantised .*txt_in.scale_weight"):
        open_checkpoint(file)
    save_file({k: v for k, v in tensors.items() if "txt_in" not in k}, file)
    with pytest.raises(ValueError, match="nor a transformer under the names that ComfyUI knows"):
        open_checkpoint(file)


def test_another_file_is_refused(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in ("flux", "other")]
    save_file(contents("flux", ""), files[0])
    save_file({k: v + 1 for k, v in contents("flux", "").items()}, files[1])
    made = erasure("flux", open_checkpoint(files[0]).weights())
    with pytest.raises(WrongBase, match="2 of 2 tensors differ"):
        made.check_base(open_checkpoint(files[1]).weights())
