import numpy as np
import pytest
import torch

from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.lora import save_lora
from erase_sd.fit.solve import Settings, fit
from erase_sd.pipelines import LiveErasure, apply_to_pipeline, generate, restore_pipeline
from tests.pipelines.helpers import PROMPTS, SEEDS, draw, same, state


def test_apply_and_remove_restore_every_bit(pipe, cat, dog):
    before = state(pipe)
    apply_to_pipeline(pipe, cat)
    one = state(pipe)
    assert not same(before, one)
    changed = {n for n in before if not torch.equal(before[n], one[n])}
    assert changed == set(cat.base)
    apply_to_pipeline(pipe, dog)
    both = state(pipe)
    restore_pipeline(pipe, dog)
    assert same(state(pipe), one)
    restore_pipeline(pipe)
    assert same(state(pipe), before)
    apply_to_pipeline(pipe, dog)
    apply_to_pipeline(pipe, cat)
    assert same(state(pipe), both)  # order does not matter, to the bit


def test_strength_zero_is_the_original(pipe, cat):
    before = state(pipe)
    live = apply_to_pipeline(pipe, cat)
    full = state(pipe)
    live.set_scale(0.5)
    half = state(pipe)
    name = next(iter(cat.base))
    torch.testing.assert_close(half[name], (before[name] + full[name]) / 2, atol=1e-6, rtol=1e-4)
    live.set_scale(0)
    assert same(state(pipe), before)
    live.set_scale(1)
    assert same(state(pipe), full)


def test_another_base_is_refused_before_anything_changes(pipe, cat):
    with torch.no_grad():
        dict(pipe.unet.named_parameters())[next(iter(cat.base))].add_(1)
    before = state(pipe)
    with pytest.raises(WrongBase, match="another base"):
        apply_to_pipeline(pipe, cat)
    assert same(state(pipe), before)
    apply_to_pipeline(pipe, cat, allow_other_base=True)
    restore_pipeline(pipe)
    assert same(state(pipe), before)


def test_another_width_is_refused(pipe):
    from dataclasses import replace

    from erase_sd.algebra.edit import LowRankEdit
    from erase_sd.artifact.concept import ErasedConcept

    narrow = Erasure(
        (ErasedConcept("x", {"tokens": LowRankEdit(torch.randn(8, 1), torch.randn(8, 1))}, ("x",)),)
    )
    with pytest.raises(WrongBase, match="width 8, the model has 192"):
        apply_to_pipeline(pipe, replace(narrow))


def test_erase_and_restore_by_the_pipeline(pipe):
    before = state(pipe)
    first = pipe.erase("cat", retain="dog")
    second = pipe.erase(["tiger"])
    assert pipe.erasures == (first, second)
    assert set(first.base) == set(second.base)  # the second was made on the original weights
    pipe.restore(first)
    assert pipe.erasures == (second,)
    pipe.restore()
    assert same(state(pipe), before)


def test_runtime_edit_of_the_embeddings_equals_the_baked_weights(pipe, cat):
    embeds, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)

    def run(e, n):
        noise = [torch.Generator().manual_seed(s) for s in SEEDS]
        return pipe(
            prompt_embeds=e,
            negative_prompt_embeds=n,
            generator=noise,
            num_inference_steps=4,
            output_type="np",
        ).images

    original, weights = run(embeds, negative), state(pipe)
    apply_to_pipeline(pipe, cat, runtime=True)
    runtime = run(embeds, negative)
    assert same(state(pipe), weights)  # no weight was touched
    assert np.abs(runtime - original).max() > 1e-3
    with pytest.raises(ValueError, match="the other mode"):
        apply_to_pipeline(pipe, cat, runtime=False)
    restore_pipeline(pipe)
    np.testing.assert_array_equal(run(embeds, negative), original)
    apply_to_pipeline(pipe, cat, runtime=False)
    np.testing.assert_allclose(
        run(embeds, negative), runtime, atol=1e-3
    )  # float32, amplified by four steps


def test_runtime_edit_of_the_values_alone_equals_the_baked_weights(pipe, encoder, weights):
    speed = fit(encoder, ["cat"], weights=weights, settings=Settings("speed"))
    live = apply_to_pipeline(pipe, speed, runtime=True)
    live.set_scale(0.7)
    passing = draw(pipe)
    restore_pipeline(pipe)
    apply_to_pipeline(pipe, speed, runtime=False).set_scale(0.7)
    np.testing.assert_allclose(draw(pipe), passing, atol=2 / 255)


def test_both_sides_baked_passing_and_as_a_lora_are_one(pipe, encoder, weights, tmp_path):
    """At full scale and at a part of it: the weights, the hooks and a LoRA in diffusers."""
    robust = fit(encoder, ["cat"], weights=weights, settings=Settings(robust=True))
    before, original = state(pipe), draw(pipe)
    save_lora(robust, LiveErasure.of(pipe).originals(), tmp_path / "lora.safetensors")
    for scale in (1.0, 0.6):
        live = apply_to_pipeline(pipe, robust, runtime=False)
        live.set_scale(scale)
        baked = draw(pipe)
        live.take()
        live.set_scale(1.0)
        assert same(state(pipe), before) and np.abs(baked - original).max() > 1e-2
        live = apply_to_pipeline(pipe, robust, runtime=True)
        live.set_scale(scale)
        np.testing.assert_allclose(draw(pipe), baked, atol=2 / 255)
        live.take()
        live.set_scale(1.0)
        pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="no_cat")
        pipe.set_adapters(["no_cat"], [scale])
        np.testing.assert_allclose(draw(pipe), baked, atol=2 / 255)
        pipe.unload_lora_weights()


def test_two_threads_lose_no_erasure_and_an_interrupt_changes_nothing(pipe, cat, dog):
    from concurrent.futures import ThreadPoolExecutor

    before = state(pipe)
    live = LiveErasure.of(pipe)
    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(live.add, (cat, dog)))
        assert set(live.erasures) == {cat, dog}
        live.take()
        assert same(state(pipe), before)
    name = sorted(live.parameters)[5]
    broken = live.parameters[name]

    class Interrupting(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise KeyboardInterrupt

    new = (cat.scaled(1)).edit_weights(live.originals())
    new[name] = new[name].as_subclass(Interrupting)
    with pytest.raises(KeyboardInterrupt):
        live._set_weights(new)
    assert broken is live.parameters[name] and same(state(pipe), before) and not live.erasures


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_lora_in_diffusers_equals_the_baked_edit(pipe, cat, dog, style, tmp_path):
    both = cat + dog
    weights = LiveErasure.of(pipe).originals()
    original = draw(pipe)
    live = apply_to_pipeline(pipe, both)
    baked = draw(pipe)
    live.take()
    assert np.abs(original - baked).max() > 1e-3
    save_lora(both, weights, tmp_path / "lora.safetensors", style=style)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="no_cat")
    np.testing.assert_allclose(draw(pipe), baked, atol=2 / 255)
    pipe.set_adapters(["no_cat"], [0.0])
    np.testing.assert_allclose(draw(pipe), original, atol=2 / 255)


def test_the_same_seed_gives_the_same_image_in_any_batch(pipe):
    alone = [
        np.asarray(generate(pipe, [p], [s], steps=3)[0], int)
        for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    together = [np.asarray(i, int) for i in generate(pipe, PROMPTS, SEEDS, steps=3)]
    assert all(np.abs(a - b).max() <= 2 for a, b in zip(alone, together, strict=True))


def test_strength_survives_a_second_concept(pipe, cat, dog):
    live = apply_to_pipeline(pipe, cat)
    live.set_scale(0.5)
    live.add(dog)
    name = next(iter(cat.base))
    expected = (cat + dog).scaled(0.5).edit_weights(live.originals())[name]
    assert torch.equal(dict(pipe.unet.named_parameters())[name].data, expected)


def test_another_text_encoder_is_refused(pipe, cat):
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).add_(0.5)
    with pytest.raises(WrongBase, match="another text encoder"):
        apply_to_pipeline(pipe, cat)


@pytest.mark.parametrize("scale", [1e300, float("nan"), "x"])
def test_a_scale_is_checked_before_there_is_anything_to_scale(pipe, scale):
    live = LiveErasure.of(pipe)
    with pytest.raises(ValueError, match="between -10 and 10"):
        live.set_scale(scale)
    assert live.scale == 1
