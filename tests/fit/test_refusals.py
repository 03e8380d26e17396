"""What cannot be erased is refused in one line."""

import pytest
import torch

from erase_sd.fit.solve import Settings, fit


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
            ({"method": "uce", "toward": "\ud800"}, "no readable text"),
            ({"strength": -1}, "between 0 and 10"),
            ({"strength": "x"}, "between 0 and 10"),
            ({"contexts": ("{x}",)}, "one place"),
            ({"contexts": ("{} {}",)}, "one place"),
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
        cat, dog = subjects.unflatten(0, (2, -1))  # in both layers
        assert (edit.apply_to_features(cat) - dog).norm() < 1e-3 * dog.norm()
