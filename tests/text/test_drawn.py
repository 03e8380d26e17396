"""A background of features too wide for a sum: one state of each prompt stands for the others."""

import pytest
import torch

from erase_sd.algebra.certificate import energy_left, energy_moved
from erase_sd.fit.solve import fit
from erase_sd.text import background as module
from erase_sd.text.background import background, vocabulary


@pytest.fixture
def drawn(encoder, monkeypatch):
    """The embedded model's background as if its features were too wide, and the whole one."""
    words = vocabulary(encoder, 80)  # fewer prompts than features
    monkeypatch.setattr(module, "vocabulary", lambda _: words)
    whole = background(encoder)
    monkeypatch.setattr(module, "WIDE", 100)
    return background(encoder), whole


def test_one_state_of_each_prompt_counts_for_all_of_its(encoder, drawn):
    few, whole = (b.moments["tokens"][0] for b in drawn)
    assert few.count == whole.count
    assert few.energy == pytest.approx(whole.energy, rel=0.02)
    assert (few.matrix - whole.matrix).norm() < 0.05 * whole.matrix.norm()


def test_it_is_read_back_and_does_not_depend_on_batches(encoder, drawn, monkeypatch):
    again = background(encoder)
    assert torch.equal(again.moments["tokens"][0].held, drawn[0].moments["tokens"][0].held)
    monkeypatch.setattr("erase_sd.text.gathering._BATCH_ELEMENTS", 1 << 14)
    made = module._gather(encoder, list(drawn[0].prompts))
    torch.testing.assert_close(
        made.moments["tokens"][0].gram, drawn[0].moments["tokens"][0].gram, rtol=1e-5, atol=1e-3
    )


def test_an_erasure_made_of_it_erases_and_spares(encoder, weights, drawn):
    concept = fit(encoder, ["cat", "kitten"], weights=weights).concepts[0]
    told = drawn[1].without(encoder, drawn[1].near(module.meanings(encoder, ["cat"]), 0.9))
    assert energy_moved(told["tokens"][0], concept.edit) < 0.25
    assert energy_left(encoder.moments(["cat"], "last-subject")["tokens"][0], concept.edit) < 1
    assert concept.certificate["null_change"] < 1e-5
