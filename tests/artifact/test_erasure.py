import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from erase_sd.algebra.methods import METHODS
from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.file import _digest
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


def forge(path, tensors, about):
    """A file whose checksum is right, as anyone can make one."""
    own = json.dumps({"about": about, "sha256": _digest(about, tensors)})
    save_file(tensors, path, metadata={"erase_sd": own})


def forge_first_format(path, tensors, about):
    """The same as version 0.1 wrote it."""
    save_file(tensors, path, metadata={"erase_sd": about, "sha256": _digest(about, tensors)})


class TestBadFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(ValueError, match="no such erasure file"):
            Erasure.load(tmp_path / "x")

    def test_every_flipped_byte_is_noticed(self, cat, tmp_path):
        whole = cat.save(tmp_path / "e.safetensors").read_bytes()
        rng = np.random.default_rng(0)
        for at in [*range(8), *rng.integers(8, len(whole), 60)]:
            broken = bytearray(whole)
            broken[at] ^= 1 << rng.integers(8)
            (tmp_path / "b").write_bytes(broken)
            with pytest.raises(ValueError):
                Erasure.load(tmp_path / "b")

    def test_truncated(self, cat, tmp_path):
        path = cat.save(tmp_path / "e.safetensors")
        for keep in (0, 7, 100, path.stat().st_size - 1):
            cut = tmp_path / f"cut{keep}"
            cut.write_bytes(path.read_bytes()[:keep])
            with pytest.raises(ValueError, match="damaged"):
                Erasure.load(cut)

    @pytest.mark.parametrize(
        "about",
        [
            "",
            "[]",
            '"x"',
            "{}",
            '{"format": "1"}',
            '{"format": 1}',
            '{"format": 1, "concepts": [{}]}',
            '{"format": 1, "concepts": 3}',
        ],
    )
    def test_hostile_metadata(self, tmp_path, about):
        path = tmp_path / "e.safetensors"
        forge(path, {"0.tokens.A": torch.zeros(3, 1)}, about)
        with pytest.raises(ValueError, match="erasure file"):
            Erasure.load(path)

    def test_newer_format(self, tmp_path):
        path = tmp_path / "e.safetensors"
        forge(path, {"0.tokens.A": torch.zeros(3, 1)}, '{"format": 99}')
        with pytest.raises(ValueError, match="upgrade"):
            Erasure.load(path)

    def test_nan_factors(self, cat, tmp_path):
        path = tmp_path / "e.safetensors"
        nan = torch.full((192, 1), float("nan"), dtype=torch.float64)
        about = json.dumps({"format": 2, **cat.describe()})
        forge(path, {"0.tokens.A": nan, "0.tokens.B": nan.clone()}, about)
        with pytest.raises(ValueError, match="no finite weight"):
            Erasure.load(path)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("contexts", ["{0.__class__}"]),
            ("contexts", ["{:0>3000000000}"]),
            ("contexts", ["no place"]),
            ("contexts", [-1]),
            ("forget", [None]),
            ("tokens", []),
            ("name", "\x1b[2J"),
            ("name", "x" * 1000),
            ("strength", float("inf")),
            ("strength", "1"),
            ("options", []),
            ("certificate", {"a": {"b": {"c": {"d": {"e": 1}}}}}),
            ("certificate", None),
            ("right", ["tokens", "sideways"]),
            ("right", []),
            ("left", ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"]),
            ("left", ["nowhere"]),
        ],
    )
    def test_forged_fields_are_one_clear_line(self, cat, tmp_path, field, value):
        about = json.loads(json.dumps(cat.describe()))
        about["concepts"][0][field] = value
        path = tmp_path / "e.safetensors"
        forge(path, cat._tensors(), json.dumps({"format": 2, **about}))
        with pytest.raises(ValueError, match=f"complete erasure file: {field}") as caught:
            Erasure.load(path)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("shape", [(70_000, 1), (4, 5), (3,), (100, 5000)])
    def test_forged_sizes_are_refused_from_the_header(self, cat, tmp_path, shape):
        path = tmp_path / "e.safetensors"
        forge(path, {"0.tokens.B": torch.zeros(shape)}, json.dumps({"format": 2, **cat.describe()}))
        with pytest.raises(ValueError, match="expected factors"):
            Erasure.load(path)

    def test_metadata_nested_without_end(self, tmp_path):
        path = tmp_path / "e.safetensors"
        forge_first_format(path, {"0.tokens.A": torch.zeros(3, 1)}, "[" * 100_000)
        with pytest.raises(ValueError, match="not an erasure file"):
            Erasure.load(path)

    def test_the_first_format_is_still_read(self, cat, tmp_path):
        about = json.loads(json.dumps(cat.describe()))
        about = {
            "format": 1,
            "tool": "erase-sd 0.1.0",
            **{k: v for k, v in about.items() if k != "scale"},
        }
        for concept in about["concepts"]:
            concept["streams"] = concept.pop("right")
            del concept["left"]
        edit = cat.edit
        tensors = {"0.tokens.A": edit.A / cat.concepts[0].strength, "0.tokens.B": edit.B.clone()}
        path = tmp_path / "old.safetensors"
        forge_first_format(path, tensors, json.dumps(about))
        old = Erasure.load(path)
        torch.testing.assert_close(old.edit.matrix, edit.matrix)
        assert old.base == cat.base and old.scale == 1 and not old.left


class TestFit:
    def test_nothing_to_forget(self, encoder):
        with pytest.raises(ValueError, match="forget prompts are empty"):
            fit(encoder, ["", "  "])

    def test_retain_equals_forget(self, encoder):
        with pytest.raises(ValueError, match="both to forget and to retain 'cat'"):
            fit(encoder, ["Cat"], retain=["cat"])

    def test_duplicates_and_blank_lines_change_nothing(self, encoder, cat):
        again = fit(encoder, ["cat", "", " cat ", "kitten", "cat"], name="cat")
        torch.testing.assert_close(again.edit.matrix, cat.edit.matrix)

    def test_rank_beyond_the_data(self, encoder):
        with pytest.raises(ValueError, match="rank 500 asked"):
            fit(encoder, ["cat"], settings=Settings.of(rank=500))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "magic"}, "no method 'magic'"),
            ({"colour": 1}, "no option 'colour'"),
            ({"toward": "animal"}, "no target"),
            ({"strength": -1}, "between 0 and 10"),
            ({"tokens": "few"}, "token rule"),
            ({"variant": "soft"}, "variant"),
        ],
    )
    def test_wrong_options(self, encoder, options, message):
        with pytest.raises(ValueError, match=message):
            fit(encoder, ["cat"], settings=Settings.of(**options))

    def test_nan_in_the_text_encoder(self, embedded):
        from erase_sd.text.encoder import TextEncoder

        broken = TextEncoder.from_folder(embedded)
        with torch.no_grad():
            next(broken.towers[0].model.parameters()).fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN"):
            fit(broken, ["cat"], settings=Settings("unlink"))

    def test_a_target_moves_the_concept_there(self, encoder, weights):
        edit = fit(
            encoder,
            ["cat"],
            weights=weights,
            settings=Settings.of(method="uce", toward="dog", ridge=1e-8, preserve_scale=0.0),
        ).edit
        subjects = encoder.subjects(["cat", "dog"])["tokens"]
        layers = len(encoder.layers)
        for cat, dog in zip(subjects[:layers], subjects[layers:], strict=True):
            assert (edit.apply_to_features(cat) - dog).norm() < 1e-3 * dog.norm()


def test_rounding_is_what_the_cast_loses(cat, weights):
    exact = {n: w.double() for n, w in weights.items()}
    assert cat.rounding(exact, cat.edit_weights(exact)) < 1e-12
    lost = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        base = {n: w.to(dtype) for n, w in weights.items()}
        lost[dtype] = cat.rounding(base, cat.edit_weights(base))
    assert lost[torch.float32] < 1e-5 < lost[torch.float16] < lost[torch.bfloat16] < 0.2
