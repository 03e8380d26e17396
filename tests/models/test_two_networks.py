"""Models that draw with two networks: both are erased, or none."""

import pytest
import torch

from erase_sd.artifact.base import WrongBase
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.pipelines import LiveErasure, apply_to_pipeline
from erase_sd.text.encoder import TextEncoder
from tests.models import tiny, tiny_video


def test_both_of_two_networks_are_erased_or_none(tmp_path):
    torch.manual_seed(0)
    pipe = tiny_video.wan22()
    erasure = fit(
        TextEncoder.of(pipe),
        ["cat"],
        weights=LiveErasure.of(pipe).originals(),
        settings=Settings("unlink-oblique"),
    )
    assert len(erasure.base) == 2
    apply_to_pipeline(pipe, erasure)
    with pytest.raises(ValueError, match="one of this model's two networks"):
        LiveErasure.of(pipe.transformer_2)
    with pytest.raises(WrongBase, match="lacks 1 of 2 tensors"):
        apply_to_pipeline(tiny_video.wan().transformer, erasure)


def test_two_networks_of_unlike_kinds_are_refused(tmp_path):
    pipe = tiny_video.wan()
    pipe.register_modules(transformer_2=tiny.pixart().transformer)
    with pytest.raises(ValueError, match="two networks of one kind, got wan and pixart"):
        LiveErasure.of(pipe)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="to be two transformers of one kind"):
        DiffusersFolder.open(tmp_path)
