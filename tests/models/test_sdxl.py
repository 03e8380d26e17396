"""SDXL's pooled stream, and LoRAs of every kind of model."""

import pytest
import torch
from safetensors.torch import load_file

from erase_sd.artifact.erasure import Erasure
from erase_sd.cli.main import main
from erase_sd.fit.solve import Settings, fit
from erase_sd.text.encoder import TextEncoder
from lab.shapes import KINDS, write_folder
from tests.models.conftest import single


def test_sdxl_erases_the_pooled_path_as_well(sdxl):
    model, encoder, weights, erasure = sdxl
    assert set(erasure.right) == {"tokens", "pooled"}
    new = erasure.edit_weights(weights)
    assert set(new) == set(weights)
    name = "add_embedding.linear_1.weight"
    width = encoder.widths["pooled"]
    assert torch.equal(new[name][:, width:], weights[name][:, width:])  # picture sizes stay
    null, cat = encoder.encode(["", "a photo of a cat"]).pooled.double()
    edit = erasure.right["pooled"]
    assert (edit.apply_to_features(null[None]) - null).norm() < 1e-3 * null.norm()
    assert (edit.apply_to_features(cat[None]) - cat).norm() > 0.01 * (cat - null).norm()


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_sdxl_lora_equals_the_baked_edit_in_diffusers(models, sdxl, style, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    from erase_sd.artifact.lora import save_lora
    from erase_sd.pipelines import LiveErasure, apply_to_pipeline

    _, _, weights, erasure = sdxl
    pipe = StableDiffusionXLPipeline.from_pretrained(
        models["sdxl"][0], dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)

    def draw():
        noise = torch.Generator().manual_seed(1)
        return pipe(
            "a photo of a cat", generator=noise, num_inference_steps=2, output_type="latent"
        ).images

    original = draw()
    live = apply_to_pipeline(pipe, erasure)
    baked = draw()
    live.take()
    assert torch.equal(draw(), original)
    apply_to_pipeline(pipe, erasure, runtime=True)
    torch.testing.assert_close(draw(), baked, atol=2e-4, rtol=1e-3)
    LiveErasure.of(pipe).take()
    assert (baked - original).abs().max() > 1e-3
    path = save_lora(erasure, weights, tmp_path / "lora.safetensors", style=style)
    keys = set(load_file(path))
    if style == "kohya":  # as sd-scripts and ComfyUI name SDXL's modules
        assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight" in keys
        assert "lora_unet_label_emb_0_0.lora_up.weight" in keys
        assert not any("down_blocks" in k for k in keys)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="x")
    torch.testing.assert_close(draw(), baked, atol=2e-4, rtol=1e-3)


def test_an_erasure_of_another_architecture_is_refused(sdxl, pipe):
    from erase_sd.artifact.base import WrongBase
    from erase_sd.pipelines import apply_to_pipeline

    with pytest.raises(WrongBase):
        apply_to_pipeline(pipe, sdxl[3], allow_other_base=True)


def test_a_file_round_trip_keeps_both_streams(sdxl, tmp_path):
    erasure = sdxl[3]
    again = Erasure.load(erasure.save(tmp_path / "e.safetensors"))
    assert again.architecture == "sdxl"
    for stream, edit in erasure.right.items():
        assert torch.equal(again.right[stream].matrix, edit.matrix)


def test_a_rank_asked_for_holds_for_every_stream_that_can_have_it(sdxl, models):
    """The pooled stream has one vector a prompt and gets rank 1.

    The token states keep what was asked.
    """
    base = single(models["sdxl"][1])
    erasure = fit(
        TextEncoder.from_checkpoint(base),
        ["a cat"],
        weights=base.weights(),
        settings=Settings.of(method="unlink", rank=3),
    )
    assert {s: e.rank for s, e in erasure.right.items()} == {"tokens": 3, "pooled": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_says_which_model_it_is_for_and_is_reproducible(models, kind, tmp_path):
    """A1111 and Forge hide a LoRA whose model they take for another."""
    from safetensors import safe_open

    from erase_sd.artifact.lora import save_lora

    base = single(models[kind][1])
    settings = Settings.of(method="unlink", rank=1)
    erasure = fit(
        TextEncoder.from_checkpoint(base), ["a cat"], weights=base.weights(), settings=settings
    )
    paths = [
        save_lora(erasure, base.weights(), tmp_path / f"{i}.safetensors", style="kohya")
        for i in range(3)
    ]
    assert len({p.read_bytes() for p in paths}) == 1
    with safe_open(paths[0], "pt") as f:
        about = f.metadata()
    if kind == "sdxl":  # the small models of the tests have widths of their own
        assert about["ss_base_model_version"] == "sdxl_base_v1-0"
        assert about["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert about["ss_network_dim"] == about["ss_network_alpha"] == str(erasure.rank)
    assert about["ss_v2"] in ("True", "False")


def test_export_for_a_fine_tune_is_asked_for_by_name(models, tmp_path, capsys):
    folder = models["sd1"][0]
    cat, lora = tmp_path / "cat", tmp_path / "lora.safetensors"
    argv = ["erase", "--model", str(folder), "--forget", "cat", "--images", "0", "--out", str(cat)]
    assert main(argv) == 0
    other = write_folder(tmp_path / "other", "sd1", small=True, seed=2)
    argv = ["export", str(cat), "--model", str(other), "--out", str(lora)]
    assert main(argv) == 2 and "--allow-other-base" in capsys.readouterr().err
    assert main([*argv, "--allow-other-base"]) == 0 and lora.is_file()
