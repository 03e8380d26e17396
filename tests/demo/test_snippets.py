"""The code that the page shows does what the page did."""

import shlex

import torch

from erase_sd.artifact.erasure import Erasure
from erase_sd.demo.snippets import python_code, shell_commands


def test_the_code_on_the_page_makes_the_same_erasure(model, tmp_path, weights, monkeypatch):
    from erase_sd.cli.main import main

    stack = (
        model.erase(["cat", "kitten"], ["horse"], method="rayleigh")[0],
        model.erase(["dog"], method="uce", toward="a horse")[0],
    )
    total = stack[0].scaled(0.8) + stack[1].scaled(0.8)
    text = python_code("emoji-sd", stack, 0.8).replace('pipe("a photo of a cat").images[0]', "")
    names: dict = {}
    exec(text, names)
    expected = total.edit_weights(weights)
    for name, parameter in names["pipe"].unet.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.float(), expected[name].float(), atol=2e-3)
    monkeypatch.chdir(tmp_path)
    for line in shell_commands("emoji-sd", stack, 0.8).splitlines():
        words = shlex.split(line)
        assert words[0] == "erase-concept"
        assert main([*words[1:], *(["--images", "0"] if words[1] == "erase" else [])]) == 0
    written = Erasure.load(tmp_path / "erased" / "erasure.safetensors")
    assert torch.allclose(written.edit.matrix, total.edit.matrix, atol=1e-6)
    assert written.scale == 0.8


def test_the_code_for_a_file_that_was_brought_reads_what_is_taken_home(
    model, tmp_path, monkeypatch
):
    from erase_sd.cli.main import main

    erasure = model.erase(["cat"], method="uce")[0]
    monkeypatch.chdir(tmp_path)
    files = model.take_home((erasure,), 0.5, tmp_path)
    names: dict = {}
    exec(python_code("emoji-sd", (erasure,), 0.5, brought=True).rpartition("\n")[0], names)
    expected = Erasure.load(files["erasure"]).edit_weights(model.live.originals())
    parameters = dict(names["pipe"].unet.named_parameters())
    assert all(
        torch.allclose(parameters[n].float(), w.float(), atol=2e-3) for n, w in expected.items()
    )
    assert main(shlex.split(shell_commands("emoji-sd", (erasure,), 0.5, brought=True))[1:]) == 0
    written = Erasure.load(tmp_path / "erased" / "erasure.safetensors")
    assert torch.equal(written.edit.A, erasure.edit.A) and written.scale == 0.5


def test_where_a_model_lies_is_as_it_was_named(cat):
    assert "from_pretrained('owner/name')" in python_code("owner/name", (cat,), 1.0)
    assert "from_single_file('a b.safetensors')" in python_code("a b.safetensors", (cat,), 1.0)
    assert "--model 'a b'" in shell_commands("a b", (cat,), 1.0)
