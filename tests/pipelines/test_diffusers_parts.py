"""diffusers' own ways to add something: a hook of the denoiser, a block of a modular pipeline."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxAutoBlocks
from diffusers.hooks import HookRegistry
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.erasure import Erasure
from erase_sd.pipelines import EraseBlock, LiveErasure, generate, hook_erasure
from tests.models import tiny

FOLDER = Path(__file__).parent.parent.parent / "hosts" / "diffusers"
SIZE = {"num_inference_steps": 2, "height": 16, "width": 16}


def edit(width, seed=0):
    noise = torch.Generator().manual_seed(seed)
    A = torch.linalg.qr(torch.randn(width, 3, generator=noise, dtype=torch.float64))[0]
    return LowRankEdit(A, A)


@pytest.fixture(scope="module")
def flux():
    pipe = tiny.flux()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def erasure(flux):
    """Random: what it says does not matter here, only where it acts."""
    concept = ErasedConcept("thing", {"tokens": edit(96), "pooled": edit(64)}, ("a thing",))
    return Erasure((concept,), "flux").bound_to(LiveErasure.of(flux).originals())


def drawn(pipe, **options):
    options |= SIZE | {"generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    return pipe(prompt="a photo of a thing", **options)


def by_weights(flux, erasure):
    """What the edited weights draw, and what the original ones do."""
    plain = drawn(flux).images
    live = LiveErasure.of(flux)
    live.add(erasure)
    try:
        return drawn(flux).images, plain
    finally:
        live.take()


class Seen:
    """Where the text stands that a denoiser is given, step by step."""

    def __init__(self, denoiser):
        self.places = []
        self.handle = denoiser.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.places.append(kwargs["encoder_hidden_states"].data_ptr())


def modular(flux, block=None, at=1):
    blocks = FluxAutoBlocks()
    if block is not None:
        blocks.sub_blocks.insert("erase", block, at)
    pipe = blocks.init_pipeline()
    pipe.update_components(**flux.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_hook_draws_what_the_edited_weights_draw(flux, erasure):
    expected, plain = by_weights(flux, erasure)
    seen = Seen(flux.transformer)
    hook_erasure(flux.transformer, erasure)
    got = drawn(flux).images
    seen.handle.remove()
    assert torch.allclose(got, expected, atol=1e-4) and not torch.allclose(got, plain, atol=1e-3)
    assert len(set(seen.places)) == 1  # text that is cached by its place stays found
    with pytest.raises(ValueError, match="already exists"):
        hook_erasure(flux.transformer, erasure)
    HookRegistry.check_if_exists_or_initialize(flux.transformer).remove_hook("erase_sd")
    assert torch.equal(drawn(flux).images, plain)


def test_the_hook_of_a_u_net_and_of_another_model(pipe, cat, erasure):
    plain = generate(pipe, ["a cat"], [1], steps=2)[0].tobytes()
    with pytest.raises(WrongBase, match="is for flux, the model is sd"):
        hook_erasure(pipe.unet, erasure)
    hook_erasure(pipe.unet, cat)
    hooked = generate(pipe, ["a cat"], [1], steps=2)[0].tobytes()
    assert hooked != plain and LiveErasure.of(pipe).erasures == (cat,)
    HookRegistry.check_if_exists_or_initialize(pipe.unet).remove_hook("erase_sd")
    assert generate(pipe, ["a cat"], [1], steps=2)[0].tobytes() == plain


def test_the_block_from_its_folder_draws_the_same(flux, erasure, tmp_path, monkeypatch):
    # Where diffusers puts the code that it is told to trust.
    where = "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(where, str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = erasure.save(tmp_path / "thing.safetensors")
    block = ModularPipelineBlocks.from_pretrained(
        str(FOLDER), trust_remote_code=True, erasure=str(file)
    )
    assert isinstance(block, EraseBlock) and block.erasure.names == ("thing",)
    expected, plain = by_weights(flux, erasure)
    assert torch.allclose(drawn(modular(flux), output="images"), plain, atol=1e-4)
    seen = Seen(flux.transformer)
    got = drawn(modular(flux, block), output="images")
    seen.handle.remove()
    assert torch.allclose(got, expected, atol=1e-4) and not torch.allclose(got, plain, atol=1e-3)
    assert len(seen.places) == 2 and len(set(seen.places)) == 1
    off = modular(flux, EraseBlock(erasure, scale=0.0))
    assert torch.allclose(drawn(off, output="images"), plain, atol=1e-4)


def test_the_block_stands_behind_the_text_encoder(flux, erasure):
    early = modular(flux, EraseBlock(erasure), at=0)
    with pytest.raises(ValueError, match="'prompt_embeds' is missing"):
        drawn(early, output="images")


def test_negative_prompts_are_edited_too_and_what_is_absent_stays_so(erasure):
    state, block = PipelineState(), EraseBlock(erasure, scale=0.5)
    noise = torch.Generator().manual_seed(1)
    given = {n: torch.randn(1, 4, 96, generator=noise) for n in ("prompt_embeds",)}
    given["negative_prompt_embeds"] = torch.randn(1, 4, 96, generator=noise)
    given["negative_pooled_prompt_embeds"] = torch.randn(1, 64, generator=noise)
    for name, value in given.items():
        state.set(name, value, "denoiser_input_fields")
    block(None, state)
    for name, value in given.items():
        half = erasure.right["pooled" if "pooled" in name else "tokens"].scaled(0.5)
        assert torch.equal(state.get(name), half.apply_to_features(value)), name
    assert state.get("pooled_prompt_embeds") is None


def test_what_a_block_cannot_do_is_refused_by_name(erasure, pipe, weights, cat):
    (concept,) = erasure.concepts
    norms = Erasure((concept,), "qwen-image")
    for given, told in (
        (None, "expected erasure="),
        (norms, "a norm before the matrix: use ErasureHook"),
        (Erasure((concept,), "sd", kinds="v"), "values alone"),
    ):
        with pytest.raises(ValueError, match=told):
            EraseBlock(given)
    state = PipelineState()
    state.set("prompt_embeds", torch.zeros(1, 2, 8))
    with pytest.raises(WrongBase, match="is for flux, the model is sd"):
        EraseBlock(erasure)(pipe, state)
    with pytest.raises(WrongBase, match="width 96, the model has 8"):
        EraseBlock(erasure)(None, state)
