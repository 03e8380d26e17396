"""Lines of tokens as language models' pipelines write them."""

import pytest
import torch
import transformers as tf

from erase_sd.models.architectures import by_name
from erase_sd.models.towers import Tower
from erase_sd.text.encoder import TextEncoder
from erase_sd.text.lines import Writer
from erase_sd.text.towers import LoadedTower, decoder_name
from tests.models import tiny_encoders

TOKENIZERS = {
    "qwen-image": tiny_encoders.qwen_tokenizer,
    "z-image": tiny_encoders.qwen_tokenizer,
    "flux2-klein": tiny_encoders.qwen_tokenizer,
    "flux2": tiny_encoders.mistral_tokenizer,
    "lumina2": tiny_encoders.gemma_tokenizer,
    "sana": tiny_encoders.gemma_tokenizer,
}


@pytest.fixture(params=TOKENIZERS)
def writer(request):
    return Writer(TOKENIZERS[request.param](), by_name(request.param).towers[0])


def test_own_tokens_are_found_between_those_of_the_template(writer):
    prompts = ["cat", "a photo of a cat", "of of of"]
    lines = writer.write(prompts)
    for row, prompt in enumerate(prompts):
        own = lines.ids[row, lines.first[row] : lines.first[row] + lines.lengths[row]].tolist()
        words = writer.tokenizer.decode(own).replace("▁", " ").split()
        assert words == prompt.split()
    assert lines.cut == 0
    around = lines.mask.sum(1) - lines.lengths
    assert around.tolist() == [writer.head + writer.tail] * len(prompts)
    # Of an empty prompt at most the space stays that its template has before it.
    assert int(writer.write([""]).lengths) <= 1


def test_long_prompts_are_cut_where_the_tokenizer_cuts_them(writer):
    long = "cat " * 3000
    lines = writer.write([long, "cat"], length=1)
    assert lines.cut == 1
    assert lines.mask.sum(1).tolist()[0] == writer.limit == lines.ids.shape[1]
    assert int(lines.lengths[0]) == writer.limit - writer.head
    assert int(lines.end[0]) == writer.limit - 1


def test_padding_stands_where_the_tokenizer_puts_it():
    lines = Writer(tiny_encoders.mistral_tokenizer(), by_name("flux2").towers[0]).write(["cat", ""])
    assert lines.mask[:, 0].tolist() == [0, 0] and lines.mask[:, -1].tolist() == [1, 1]
    assert lines.ids.shape[1] == 512


def test_a_processor_writes_what_its_tokenizer_writes():
    spec, tokenizer = by_name("flux2").towers[0], tiny_encoders.mistral_tokenizer()
    alone = Writer(tokenizer, spec).write(["a photo of a cat"])
    tokenizer.chat_template = None
    pictures = tf.CLIPImageProcessorPil()
    both = tf.LlavaProcessor(pictures, tokenizer, patch_size=14, chat_template=tiny_encoders.INST)
    assert torch.equal(Writer(both, spec).write(["a photo of a cat"]).ids, alone.ids)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="at least 34 tokens of the template, got 1"):
        Writer(tiny_encoders.gemma_tokenizer(), Tower(kind="llm", template="{}", dropped=34))


def test_small_letters_where_the_pipeline_takes_them():
    tokenizer, model = tiny_encoders.t5(32)
    tower = LoadedTower(by_name("pixart").towers[0], tokenizer, model)
    one, other = tower.encode([" A Cat"])[0][0], tower.encode(["a cat"])[0][0]
    assert torch.equal(one.states, other.states)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "layers.3.self_attn.q_proj.weight"),
        ("language_model.model.norm.weight", "norm.weight"),
        ("model.language_model.embed_tokens.weight", "embed_tokens.weight"),
        ("lm_head.weight", None),
        ("vision_tower.transformer.layers.0.attention.q_proj.weight", None),
        ("model.visual.blocks.0.norm1.weight", None),
        ("multi_modal_projector.norm.weight", None),
    ],
)
def test_a_decoder_has_one_name_in_every_wrapping(name, inside):
    assert decoder_name(name) == inside


def test_a_norm_without_its_weight_is_refused():
    with pytest.raises(ValueError, match=r"expected the weight of txt_norm\.weight, got none"):
        TextEncoder(by_name("qwen-image"), [])
