"""Single files: read as diffusers reads them, erased in place of their bytes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd.artifact.erasure import Erasure
from erase_sd.cli.main import main
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.models.ldm_names import UNET, from_ldm, to_ldm
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.single_file import SingleFile
from erase_sd.text.encoder import TextEncoder
from lab.shapes import KINDS, TOKENIZER
from tests.models.conftest import single


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_read_as_diffusers_reads_it(models, kind):
    """Same cross-attention tensors by name.

    And the same text states as the pipeline itself computes.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    folder, file = models[kind]
    Pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipe = Pipeline.from_single_file(
        str(file), config=str(folder), dtype=torch.float32, local_files_only=True
    )
    ours = single(file)
    theirs = dict(pipe.unet.named_parameters())
    assert len(ours.where) > 10
    for name, weight in ours.weights().items():
        assert torch.equal(weight.float(), theirs[name])
    prompts = ["a photo of a cat", ""]
    a, b = TextEncoder.from_checkpoint(ours).encode(prompts), TextEncoder.of(pipe).encode(prompts)
    torch.testing.assert_close(a.states, b.states, atol=1e-5, rtol=1e-4)
    embeds = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(a.states[:1], embeds[0][:1], atol=1e-5, rtol=1e-4)
    if kind == "sdxl":
        torch.testing.assert_close(a.pooled, b.pooled, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.pooled[:1], embeds[2][:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ldm_names_go_there_and_back(models, kind):
    folder, file = models[kind]
    for name, (_, stored) in SingleFile.open(file).where.items():
        assert from_ldm(stored) == name and UNET + to_ldm(name) == stored
    assert set(SingleFile.open(file).where) == set(DiffusersFolder.open(folder).where)


def test_published_names():
    k, v = "transformer_blocks.0.attn2.to_k.weight", "transformer_blocks.0.attn2.to_v.weight"
    deep = "transformer_blocks.9.attn2.to_k.weight"
    pairs = {
        f"down_blocks.0.attentions.0.{k}": f"input_blocks.1.1.{k}",
        f"down_blocks.2.attentions.1.{v}": f"input_blocks.8.1.{v}",
        f"mid_block.attentions.0.{deep}": f"middle_block.1.{deep}",
        f"up_blocks.1.attentions.2.{k}": f"output_blocks.5.1.{k}",
        "add_embedding.linear_1.weight": "label_emb.0.0.weight",
    }
    for mine, theirs in pairs.items():
        assert to_ldm(mine) == theirs and from_ldm(UNET + theirs) == mine


@pytest.mark.parametrize("kind", KINDS)
def test_erase_a_single_file(models, kind, tmp_path, capsys):
    """Same header and bytes but for the edit; equal to the folder's edit; loads; verifies.

    Comes back.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    folder, file = models[kind]
    out = tmp_path / "erased.safetensors"
    common = ["--tokenizer", str(TOKENIZER)]
    argv = ["erase", "--model", str(file), "--forget", "cat", "--rank", "1", "--out", str(out)]
    assert main([*argv, "--keep-undo", *common]) == 0
    before, after = file.read_bytes(), out.read_bytes()
    assert len(before) == len(after)
    header = 8 + int.from_bytes(before[:8], "little")
    assert before[:header] == after[:header]
    erasure = Erasure.load(tmp_path / "erased.erasure.safetensors")
    base, new = single(file), single(out)
    expected = erasure.edit_weights(base.weights())
    for name, weight in new.weights().items():
        assert torch.equal(weight, expected[name])
    old_all, new_all = load_file(file), load_file(out)
    changed = {k for k in old_all if not torch.equal(old_all[k], new_all[k])}
    assert changed == {stored for _, stored in base.where.values()}
    # diffusers loads it, and sees the same numbers
    Pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipe = Pipeline.from_single_file(
        str(out), config=str(folder), dtype=torch.float32, local_files_only=True
    )
    seen = dict(pipe.unet.named_parameters())
    assert all(torch.equal(seen[n], w.float()) for n, w in expected.items())
    # apply gives the same file; verify agrees; the undo file gives the original
    again = tmp_path / "again.safetensors"
    own = str(tmp_path / "erased.erasure.safetensors")
    argv = ["apply", own, "--model", str(file), "--out", str(again), *common]
    assert main(argv) == 0
    assert again.read_bytes() == after
    assert main(["verify", str(out), "--model", str(file), *common]) == 0
    assert main(["remove", str(out), "--out", str(tmp_path / "restored.safetensors")]) == 0
    assert (tmp_path / "restored.safetensors").read_bytes() == before
    assert file.read_bytes() == before


def test_a_lora_or_a_refiner_is_no_checkpoint(tmp_path):
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="LoRA"):
        open_checkpoint(tmp_path / "lora.safetensors")
    save_file({UNET + "x": torch.zeros(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="no text encoder"):
        open_checkpoint(tmp_path / "unet.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a single-file checkpoint"):
        open_checkpoint(tmp_path / "x.safetensors")
