"""From prompts to an erasure: what is kept exactly, what cannot be written, what is recorded."""

import pytest
import torch

from erase_sd.algebra.certificate import change
from erase_sd.artifact.erasure import Erasure
from erase_sd.fit.solve import Settings, fit, resolve
from erase_sd.fit.task import Task, in_contexts, is_style


@pytest.fixture(scope="module")
def robust(encoder, weights):
    return fit(encoder, ["cat"], weights=weights, settings=Settings(robust=True))


def moved(encoder, erasure, prompt):
    return float(change(erasure.edit, encoder.encode([prompt]).rows("all-but-bos")).max())


class TestRetain:
    def test_a_named_prompt_is_kept_where_that_is_possible(self, encoder, weights):
        without = fit(encoder, ["cat"], weights=weights)
        settings = Settings.of(protect_named=True)
        named = ["tiger", "a photo of a dog"]
        with_ = fit(encoder, ["cat"], retain=named, weights=weights, settings=settings)
        for prompt in ("tiger", "a photo of a dog"):
            assert moved(encoder, with_, prompt) < 0.04 < moved(encoder, without, prompt)
        assert with_.concepts[0].certificate["retain_contradicts"] == {}
        assert moved(encoder, with_, "cat") > 0.3  # and the cat goes all the same

    def test_what_contradicts_the_erasure_is_said(self, encoder, weights):
        """By default what is named weighs more, and nothing is forced on what nobody listed."""
        words = [f"a photo of a {w}" for w in ("dog", "tiger", "fox", "bear", "lion", "horse")]
        many = [f"{w} {place}" for w in words for place in ("at night", "in snow", "by noto", "")]
        erasure = fit(encoder, ["cat"], retain=many, weights=weights)
        said = erasure.concepts[0].certificate["retain_contradicts"]
        assert said
        for prompt, drift in said.items():
            rows = torch.cat(encoder.encode([prompt]).every("all-but-bos")).double()
            edit = erasure.concepts[0].edit  # at strength 1, as the certificate
            own = float((edit.apply_to_features(rows) - rows).norm() / rows.norm())
            assert own == pytest.approx(drift, abs=1e-3) and drift > 0.01

    def test_a_method_that_protects_nothing_refuses_it(self, encoder):
        with pytest.raises(ValueError, match="no use for retain prompts"):
            fit(encoder, ["cat"], retain=["dog"], settings=Settings("unlink"))


class TestLeftSide:
    def test_no_input_writes_what_sets_the_concept_apart(self, robust, weights):
        values = [n for n in weights if n.endswith("to_v.weight")]
        assert sorted(robust.left) == sorted(values)
        new = robust.edit_weights({n: w.double() for n, w in weights.items()})
        for name in values:
            b = robust.left[name].B
            assert float((b.T @ new[name]).abs().max()) < 1e-6
            assert float((b.T @ weights[name].double()).abs().max()) > 1e-2

    def test_it_is_certified_over_all_inputs_and_the_right_side_alone_is_not(
        self, robust, encoder, weights
    ):
        certificate = robust.concepts[0].certificate
        assert certificate["unreachable"] > 0.5 > 0.01 > certificate["unreachable_before"]
        assert "unreachable" not in fit(encoder, ["cat"], weights=weights).concepts[0].certificate

    def test_the_empty_prompt_stays(self, robust, encoder, weights):
        null = encoder.encode([""]).rows("all").double()
        wide = {n: w.double() for n, w in weights.items()}
        for name, new in robust.edit_weights(wide).items():
            old = null @ wide[name].T
            assert float((null @ new.T - old).norm() / old.norm()) < 0.02

    def test_synonyms_go_as_well(self, robust):
        assert {"cat", "kitty"} <= set(robust.concepts[0].forget)
        assert not {"dog", "tiger"} & set(robust.concepts[0].forget)

    def test_round_trip_and_algebra(self, robust, encoder, weights, tmp_path):
        again = Erasure.load(robust.save(tmp_path / "e.safetensors"))
        assert set(again.left) == set(robust.left)
        assert all(torch.equal(again.left[n].B, robust.left[n].B) for n in again.left)
        dog = fit(encoder, ["dog"], weights=weights, settings=Settings(robust=True))
        both = robust + dog
        new = both.edit_weights({n: w.double() for n, w in weights.items()})
        for one in (robust, dog):
            for name, side in one.left.items():
                assert float((side.B.T @ new[name]).abs().max()) < 1e-6
        for name, side in (both - "dog").left.items():
            assert torch.equal(side.B, robust.left[name].B)

    def test_it_needs_weights(self, encoder):
        with pytest.raises(ValueError, match="needs the weights"):
            fit(encoder, ["cat"], settings=Settings(robust=True))

    @pytest.mark.parametrize("method", ["uce", "speed", "soft"])
    def test_any_method_can_have_one(self, encoder, weights, method):
        erasure = fit(encoder, ["cat"], weights=weights, settings=Settings(method, robust=True))
        new = erasure.edit_weights({n: w.double() for n, w in weights.items()})
        for name, side in erasure.left.items():
            assert float((side.B.T @ new[name]).abs().max()) < 1e-6
        assert erasure.concepts[0].options["left"] == {"spare": 10.0, "move": 0.009}


class TestSettings:
    def test_options_are_recorded_as_used(self, encoder, weights):
        concept = fit(encoder, ["cat"], weights=weights, settings=Settings("rayleigh")).concepts[0]
        assert concept.options["rank"] == concept.edit.rank  # None was asked
        assert Settings.of(method="uce", ridge=0.1, toward="dog").options == {"ridge": 0.1}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epsilon": float("nan")}, "epsilon"),
            ({"epsilon": -1}, "expected epsilon between"),
            ({"mu": "much"}, "expected a number, got 'much'"),
            ({"rank": 1.5}, "expected a whole number"),
            ({"share": 1}, "no option 'share'"),
        ],
    )
    def test_values_are_checked_by_type_and_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            resolve(Settings("soft", options=options), ["cat"])

    def test_text_is_read_as_the_options_type(self):
        chosen = resolve(Settings("rayleigh", options={"rank": "3", "protect_null": "no"}), ["x"])
        assert chosen.options.rank == 3 and chosen.options.protect_null is False
        assert resolve(Settings("rayleigh", options={"rank": "none"}), ["x"]).options.rank is None

    def test_styles_have_settings_of_their_own(self):
        own, style = (resolve(Settings("rayleigh"), [p]) for p in ("noto", "by noto"))
        assert (own.strength, own.options.share) == (1.25, 0.1)
        assert (style.strength, style.options.share) == (1.5, 0.03)


def test_styles_stand_behind_things():
    assert is_style(["in the style of Monet"]) and not is_style(["a house by the sea", "bypass"])
    assert "a tree by noto" in in_contexts(["by noto"], ["{}", "a photo of a {}"])
    assert in_contexts(["cat"], ["{}", "a {}"]) == ["cat", "a cat"]
    long = "a very long sentence of its own"
    assert in_contexts([long], ["{}", "a {}"]) == [long]


def test_forget_and_retain_may_not_agree(encoder):
    with pytest.raises(ValueError, match="both to forget and to retain 'cat'"):
        Task(encoder, ("Cat",), ("cat",))
