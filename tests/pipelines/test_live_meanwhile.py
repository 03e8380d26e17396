"""Live erasures and what else is done to a pipeline: saved, copied, compiled, fused, replaced."""

import copy
import io

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)

from erase_sd.artifact.lora import save_lora
from erase_sd.pipelines import LiveErasure, apply_to_pipeline, restore_pipeline
from tests.pipelines.helpers import draw, same, state


def test_weights_replaced_from_outside_are_noticed(pipe, cat, caplog):
    live = apply_to_pipeline(pipe, cat)
    fresh = {n: p.detach().clone() + 1 for n, p in pipe.unet.state_dict().items()}
    pipe.unet.load_state_dict(fresh, assign=True)
    assert live.erasures == () and "replaced from outside" in caplog.text
    live.take()
    assert same(state(pipe), {n: fresh[n] for n in state(pipe)})


def test_a_saved_pipeline_is_a_plain_one_with_its_erasure_beside_it(pipe, tmp_path):
    from erase_sd.operations.verifying import verify

    pipe.erase("cat")
    pipe.save_pretrained(tmp_path / "saved")
    again = DiffusionPipeline.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, local_files_only=True
    )
    assert type(again).__name__ == "StableDiffusionPipeline"
    assert same(state(pipe), dict(again.unet.named_parameters()))
    assert verify(tmp_path / "saved").passed
    pipe.restore()
    pipe.save_pretrained(tmp_path / "saved")  # nothing of the erasure is left beside it
    assert not list((tmp_path / "saved").glob("erasure*"))
    with pytest.raises(FileExistsError, match="holds no erasure.json"):
        pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="hf upload"):
        pipe.save_pretrained(tmp_path / "pushed", push_to_hub=True)


def test_a_pipeline_of_another_task_is_erased_as_well(pipe, cat):
    pipe.erase(cat)
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert LiveErasure.of(other).erasures == (cat,)
    plain = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    again = AutoPipelineForImage2Image.from_pipe(plain)
    assert LiveErasure.of(again).erasures == (cat,)


def test_a_pipeline_is_saved_whole_or_not_at_all(pipe, cat, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on the device")

    (tmp_path / "first").mkdir()
    cat.save(tmp_path / "first" / "erasure.safetensors")
    (tmp_path / "first" / "erasure.json").write_text("{}")
    monkeypatch.setattr(pipe.vae, "save_pretrained", full)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    for name in ("first", "new"):
        with pytest.raises(OSError, match="no space left"):
            pipe.save_pretrained(tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_fused_projections_are_refused(pipe, cat):
    pipe.fuse_qkv_projections(unet=True, vae=False)
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        apply_to_pipeline(pipe, cat)


def test_a_compiled_denoiser_is_erased_and_restored(pipe, cat):
    before = state(pipe)
    plain = pipe.unet
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    apply_to_pipeline(pipe, cat)
    changed = {n for n, p in plain.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(cat.base)
    restore_pipeline(pipe)
    assert all(torch.equal(p, before[n]) for n, p in plain.named_parameters())


@pytest.mark.parametrize("runtime", [False, True])
def test_an_erased_denoiser_can_be_copied_and_pickled(pipe, cat, runtime):
    apply_to_pipeline(pipe, cat, runtime=runtime)
    expected = draw(pipe)
    stored = io.BytesIO()
    torch.save(pipe.unet, stored)
    stored.seek(0)
    for copied in (copy.deepcopy(pipe.unet), torch.load(stored, weights_only=False)):
        original, pipe.unet = pipe.unet, copied
        assert np.array_equal(draw(pipe), expected)
        restore_pipeline(copied)
        assert not np.array_equal(draw(pipe), expected)  # it has hooks and originals of its own
        pipe.unet = original
        assert np.array_equal(draw(pipe), expected)


def test_a_lora_fused_meanwhile_is_not_spoilt_by_restoring(pipe, cat, dog, tmp_path):
    before = state(pipe)
    path = save_lora(dog, LiveErasure.of(pipe).originals(), tmp_path / "dog.safetensors")
    apply_to_pipeline(pipe, cat)
    pipe.load_lora_weights(str(path))
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="14 erased weights were written by somebody else"):
        restore_pipeline(pipe)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    restore_pipeline(pipe)  # what unfusing left of rounding is no reason to refuse
    assert same(state(pipe), before)


def test_diffusers_loads_it_as_a_custom_pipeline(embedded, cat):
    import erase_sd.pipelines.stable_diffusion as module

    pipe = DiffusionPipeline.from_pretrained(
        str(embedded),
        custom_pipeline=module.__file__,
        trust_remote_code=True,
        local_files_only=True,
    )
    assert pipe.erase("cat").names == ("cat",)
    pipe.restore()
    assert pipe.erasures == ()


def test_restore_under_a_loaded_lora(pipe, cat, dog, tmp_path):
    """Loading a LoRA renames the modules around the weights; the erasure still finds them."""
    before = state(pipe)
    save_lora(dog, LiveErasure.of(pipe).originals(), tmp_path / "dog.safetensors")
    apply_to_pipeline(pipe, cat)
    pipe.load_lora_weights(tmp_path, weight_name="dog.safetensors", adapter_name="dog")
    pipe.restore()
    pipe.unload_lora_weights()
    assert same(state(pipe), before)


def test_a_half_precision_pipeline_is_the_same_base(pipe, cat):
    pipe.unet.half()
    pipe.text_encoder.half()
    before = state(pipe)
    apply_to_pipeline(pipe, cat)
    assert not same(state(pipe), before)
    restore_pipeline(pipe)
    assert same(state(pipe), before)
