"""An erasure as a value: sums, differences, bases, LoRA."""

import json
import math

import pytest
import torch

from erase_sd.algebra.methods import METHODS
from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.lora import lora_tensors
from erase_sd.fit.solve import Settings, fit


@pytest.mark.parametrize("method", METHODS)
def test_every_method_round_trips(method, encoder, weights, tmp_path):
    one = fit(
        encoder,
        ["cat"],
        retain=["dog"] if METHODS[method].retain != "none" else [],
        weights=weights,
        settings=Settings(method),
    )
    again = Erasure.load(one.save(tmp_path / "e.safetensors"))
    assert torch.equal(again.edit.A, one.edit.A) and torch.equal(again.edit.B, one.edit.B)
    assert json.dumps(again.describe()) == json.dumps(one.describe())
    certificate = one.concepts[0].certificate
    assert all(math.isfinite(v) for v in certificate.values() if isinstance(v, float))
    if METHODS[method].kinds == "v":
        assert all("to_v" in name for name in one.base)


def test_default_leaves_the_empty_prompt_and_takes_the_concept(cat):
    certificate = cat.concepts[0].certificate
    assert certificate["null_change"] < 0.01
    assert certificate["forget_residual"] < 0.5


def test_it_is_kilobytes(cat, tmp_path):
    assert cat.save(tmp_path / "e.safetensors").stat().st_size < 64_000


def test_sum_is_order_independent_and_difference_undoes_it(cat, dog):
    both, other = cat + dog, dog + cat
    assert both.names == other.names == ("cat", "dog")
    assert torch.equal(both.edit.matrix, other.edit.matrix)
    torch.testing.assert_close((both - cat).edit.matrix, dog.edit.matrix, atol=1e-10, rtol=0)
    torch.testing.assert_close((both - "dog").edit.matrix, cat.edit.matrix, atol=1e-10, rtol=0)


def test_overshoot_is_shared(encoder, weights):
    """Each concept is projected out; what it has above strength 1 is divided among them."""
    one, two = (
        fit(encoder, [word], weights=weights, settings=Settings("rayleigh"))
        for word in ("cat", "dog")
    )
    for erasure in (one, two):
        A, s = erasure.concepts[0].edit.A, erasure.concepts[0].strength
        assert s == 1.25
        moved = (one + two).edit.matrix @ A
        torch.testing.assert_close(moved, -(s - 1) / 2 * A, atol=1e-5, rtol=0)


def test_what_cannot_be_combined(cat, encoder):
    with pytest.raises(ValueError, match="two concepts of one name"):
        cat + cat
    with pytest.raises(ValueError, match="not erased here: bird"):
        cat - "bird"
    values = fit(encoder, ["bird"], settings=Settings("speed"))
    with pytest.raises(WrongBase, match="kinds"):
        cat + values


def test_another_base_is_refused_and_named(cat, weights):
    name = next(iter(weights))
    other = {**weights, name: weights[name] + 1}
    with pytest.raises(WrongBase, match=f"1 of 14 tensors differ, e.g. {name}"):
        cat.check_base(other)
    assert cat.edit_weights(other)
    with pytest.raises(WrongBase, match="lacks 1 of 14"):
        cat.check_base({n: w for n, w in weights.items() if n != name})


def test_precision_of_the_base_does_not_matter_to_its_hash(cat, weights):
    cat.check_base({n: w.float() for n, w in weights.items()})


def test_lora_equals_bake(cat, dog, weights):
    both = cat + dog
    wide = {n: w.double() for n, w in weights.items()}
    baked = both.edit_weights(wide)
    tensors = lora_tensors(both, wide, dtype=torch.float64)
    for name, weight in wide.items():
        key = "unet." + name.removesuffix(".weight")
        delta = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        torch.testing.assert_close(weight + delta, baked[name], atol=1e-10, rtol=0)


def test_kohya_names_rank_and_alpha(cat, weights):
    tensors = lora_tensors(cat, weights, style="kohya")
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert tensors[f"{key}.alpha"] == cat.edit.rank
    assert tensors[f"{key}.lora_down.weight"].shape == (cat.edit.rank, 192)
    assert len(tensors) == 3 * len(weights)
    assert {k.split(".")[0] for k in tensors} == {
        "lora_unet_" + n.removesuffix(".weight").replace(".", "_") for n in weights
    }


def lost(erasure, base):
    new = erasure.edit_weights(base)
    return max(erasure.edit_of(s).lost(base[s.name], new[s.name]) for s in erasure.editable(base))


def test_rounding_is_what_the_cast_loses(cat, weights):
    assert lost(cat, {n: w.double() for n, w in weights.items()}) < 1e-12
    single, half, brain = (
        lost(cat, {n: w.to(dtype) for n, w in weights.items()})
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    assert single < 1e-5 < half < brain < 0.2
