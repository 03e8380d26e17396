import pytest
import torch

from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.text.encoder import TextEncoder
from erase_sd.text.fingerprint import fingerprint_of
from erase_sd.text.tokens import TOKEN_RULES


def test_states_are_what_the_pipeline_sees(encoder, pipe):
    prompts = ["a photo of a cat", "", "a dog by noto, on red"]
    expected, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    torch.testing.assert_close(encoder.encode(prompts).states, expected, atol=1e-5, rtol=1e-5)


def test_the_other_layer_is_what_hosts_feed_under_clip_skip_2(encoder, pipe):
    """The last layer but one through the final norm, as A1111, Forge and ComfyUI compute it."""
    prompts = ["a photo of a cat", ""]
    model = pipe.text_encoder
    ids = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
        norm = getattr(model, "text_model", model).final_layer_norm
        expected, last = norm(hidden[-2]), norm(hidden[-1])
    states = encoder.encode(prompts)
    torch.testing.assert_close(states.others[0].states, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.states, last, atol=1e-5, rtol=1e-5)
    assert float((states.others[0].states - states.states).abs().max()) > 0.1


def test_bos_is_one_vector_for_all_prompts(encoder):
    states = encoder.encode(["cat", "a long prompt about a river", ""]).states[:, 0]
    assert torch.allclose(states[0], states[1], atol=1e-6) and torch.allclose(
        states[0], states[2], atol=1e-6
    )


@pytest.mark.parametrize("rule", TOKEN_RULES)
def test_token_rules_pick_what_they_say(encoder, rule):
    states = encoder.encode(["a photo of a cat", ""])
    own = states.segments[0].lengths.tolist()
    assert own == [5, 0]
    mask = states.mask(rule)
    expected = {
        "all": [77, 77],
        "all-but-bos": [76, 76],
        "balanced": [76, 76],
        "padding": [70, 75],
        "words": [5, 0],
        "words+eos": [6, 1],
        "last-subject": [1, 1],
        "eos": [1, 1],
    }[rule]
    assert mask.sum(1).tolist() == expected
    assert bool(mask[0, 0]) == (rule == "all")
    if rule == "last-subject":
        assert mask[0, 5] and mask[1, 1]  # for an empty prompt its EOS, never BOS
    if rule == "eos":
        assert mask[0, 6] and mask[1, 1]


def test_balanced_words_count_as_much_as_the_padding_behind_them(encoder):
    states = encoder.encode(["a photo of a cat", "dog"])
    told = encoder.moments(["a photo of a cat", "dog"], "balanced")["tokens"]
    for layer, rows, padding in zip(
        told, states.every("words+eos"), states.every("padding"), strict=True
    ):
        words, behind = (r.double().T @ r.double() / len(r) for r in (rows, padding))
        torch.testing.assert_close(layer.matrix, (words + behind) / 2, atol=1e-6, rtol=1e-5)
        assert layer.count == len(rows) + len(padding)


def test_unknown_rule_is_refused(encoder):
    with pytest.raises(ValueError, match="expected a token rule"):
        encoder.encode(["x"]).mask("some")


@pytest.mark.parametrize(
    "prompt",
    [
        "🐱 emoji",
        "قطة سوداء",
        "חתול",
        "日本の猫",
        "Zürich naïve",
        "a\tb\nc",
        "<|endoftext|> cat",
        "x" * 5000,
        "a cat " * 900,
    ],
)
def test_any_text_gives_finite_states_of_the_right_shape(encoder, prompt):
    states = encoder.encode([prompt]).states
    assert states.shape == (1, 77, encoder.width) and torch.isfinite(states).all()


def test_long_prompts_are_cut_as_the_pipeline_cuts_them_and_said_so(encoder, pipe, caplog):
    prompt = "a cat and a dog " * 60
    expected, _ = pipe.encode_prompt([prompt], "cpu", 1, False)
    torch.testing.assert_close(encoder.encode([prompt]).states, expected, atol=1e-5, rtol=1e-5)
    with caplog.at_level("WARNING"):
        list(encoder.stream([prompt, "cat"]))
    assert "1 of 2 prompts are longer than 77 tokens" in caplog.text


def test_streaming_equals_one_batch(encoder):
    prompts = [f"a photo of thing {i}" for i in range(37)]
    whole = encoder.encode(prompts).rows("all-but-bos").double()
    moment, other = encoder.moments(prompts, "all-but-bos")["tokens"]
    torch.testing.assert_close(moment.matrix, whole.T @ whole / len(whole), atol=1e-6, rtol=1e-5)
    assert moment.count == other.count == 37 * 76


def test_fingerprint_names_the_weights(encoder, embedded):
    again = TextEncoder.from_folder(embedded)
    assert (
        again.fingerprint == encoder.fingerprint == fingerprint_of(DiffusersFolder.open(embedded))
    )
    with torch.no_grad():
        next(again.towers[0].model.parameters())[0, 0] += 1
    assert TextEncoder(again.architecture, again.towers).fingerprint != encoder.fingerprint


def test_a_folder_without_a_text_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot load the text encoder"):
        TextEncoder.from_folder(tmp_path)


def test_what_reads_the_same_is_encoded_once_and_counts_as_often(encoder, monkeypatch):
    long = "cat " * 90
    prompts = ["dog", *(f"{long}{i}" for i in range(40)), "Dog", "pizza"]
    states = encoder.encode(prompts)
    rows = states.rows("words")
    batches = []
    true = encoder.encode

    def counting(some, **more):
        batches.append(len(some))
        return true(some, **more)

    monkeypatch.setattr(encoder, "encode", counting)
    moment = encoder.moments(prompts, "words")["tokens"][0]
    assert sum(batches) == 3
    assert moment.count == len(rows)
    torch.testing.assert_close(moment.total, rows.double().sum(0), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(moment.gram, (rows.T @ rows).double(), atol=1e-2, rtol=1e-4)
    subjects = encoder.subjects(prompts)["tokens"].unflatten(0, (len(prompts), -1))
    for i, rows in enumerate(states.every("last-subject")):  # layer by layer
        torch.testing.assert_close(subjects[:, i], rows.double(), atol=1e-4, rtol=1e-4)
    assert encoder.subjects([])["tokens"].shape == (0, encoder.width)
