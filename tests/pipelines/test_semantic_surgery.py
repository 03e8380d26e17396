"""Semantic Surgery takes a concept out of its prompts, and leaves the others bit for bit."""

import pytest
import torch

from erase_sd.emoji.models import EMOJI_SD
from erase_sd.pipelines.loading import load_pipeline
from erase_sd.pipelines.semantic_surgery import Gate, semantic_surgery


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(EMOJI_SD)


def states(pipe, prompt):
    with torch.no_grad():
        return pipe.encode_prompt(prompt, pipe.device, 1, False)[0]


def test_its_prompts_lose_the_concept_and_others_stay(pipe):
    prompts = ["a cat on a table", "a rocket", ""]
    before = [states(pipe, p) for p in prompts]
    away = (states(pipe, "cat") - states(pipe, ""))[0]
    with semantic_surgery(pipe, "cat", Gate(bias=-0.3)):
        after = [states(pipe, p) for p in prompts]
    taken = before[0][0] - after[0][0]
    assert taken.norm() > 0.5 * away.norm()
    cosine = torch.nn.functional.cosine_similarity(taken.flatten(), away.flatten(), dim=0)
    assert cosine > 0.999
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])
    assert torch.equal(states(pipe, prompts[0]), before[0])  # and it was for a while only


def test_lines_that_end_early_are_read_as_far_as_they_go(pipe):
    ids = pipe.tokenizer("a cat", return_tensors="pt").input_ids
    with torch.no_grad():
        before = pipe.text_encoder(ids).last_hidden_state
        with semantic_surgery(pipe, "a cat", Gate(bias=0.0)):
            after = pipe.text_encoder(ids).last_hidden_state
        empty = states(pipe, "")[:, : ids.shape[1]]
    assert ids.shape[1] < pipe.tokenizer.model_max_length
    assert not torch.allclose(before, empty, atol=0.1)
    torch.testing.assert_close(after, empty, atol=1e-4, rtol=1e-3)  # all of "a cat" was taken out


def test_two_text_encoders_are_refused(pipe):
    pipe.text_encoder_2 = pipe.text_encoder
    with (
        pytest.raises(ValueError, match="one text encoder"),
        semantic_surgery(pipe, "cat"),
    ):
        pass
    del pipe.text_encoder_2
