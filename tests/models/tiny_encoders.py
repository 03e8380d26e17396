"""Text encoders of every kind at reduced width, and tokenizers made here: no download."""

import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from lab.shapes import TOKENIZER

WORDS = (
    "a of the photo picture drawing cat dog house tree flower car boat bird stone river cloud bread"
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
INST = (
    "<s>{% for m in messages %}{% set text = m.content[0].text %}{% if m.role == 'system' %}"
    "[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]{% else %}[INST]{{ text }}[/INST]{% endif %}"
    "{% endfor %}"
)


def fast(vocab, pre, *, special=(), closing=None, **names):
    """A tokenizer of whole words with the special tokens named."""
    ids = {w: i for i, w in enumerate([*names.values(), *special, *vocab])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=names["unk_token"]))
    tokenizer.pre_tokenizer = pre
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in special])
    if closing:
        single, around = closing
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(around, ids[around])]
        )
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=2048, **names)


def marked(**options):
    """A tokenizer that marks a word's beginning by ▁, as T5's and Gemma's do."""
    vocab = [f"▁{w}" for w in WORDS.split()]
    return fast(vocab, pre_tokenizers.Metaspace(), unk_token="<unk>", pad_token="<pad>", **options)


def t5_tokenizer():
    return marked(eos_token="</s>", closing=("$A </s>", "</s>"))


def gemma_tokenizer():
    return marked(bos_token="<bos>", eos_token="<eos>", closing=("<bos> $A", "<bos>"))


def bytes_tokenizer(chat, *, special, side="right", **names):
    """A tokenizer of the kind that Qwen, Llama and Mistral have, Ġ before a word."""
    vocab = [mark + w for w in WORDS.split() for mark in ("Ġ", "")]
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = fast([*vocab, "Ċ", "ĊĊ", "system"], pre, special=special, **names)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.chat_template, tokenizer.padding_side = chat, side
    return tokenizer


def qwen_tokenizer():
    return bytes_tokenizer(
        CHAT,
        special=("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )


def mistral_tokenizer():
    """The pipeline's processor, less the reader of pictures, which needs torchvision."""
    special = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    return bytes_tokenizer(
        INST,
        special=(*special, "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        side="left",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def clip(width, *, projected):
    tokenizer = tf.CLIPTokenizer.from_pretrained(TOKENIZER)
    config = tf.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    Model = tf.CLIPTextModelWithProjection if projected else tf.CLIPTextModel
    return tokenizer, Model(config).eval()


def t5(width):
    config = tf.T5Config(vocab_size=120, d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return t5_tokenizer(), tf.T5EncoderModel(config).eval()


def umt5(width):
    config = tf.UMT5Config(
        vocab_size=120, d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    return t5_tokenizer(), tf.UMT5EncoderModel(config).eval()


def gemma2(width):
    config = tf.Gemma2Config(**decoder(width, 3))
    return gemma_tokenizer(), tf.Gemma2Model(config).eval()


def decoder(width, layers, **more):
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 128,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        **more,
    }


def qwen3(width, layers, *, headless=False):
    config = tf.Qwen3Config(**decoder(width, layers))
    return qwen_tokenizer(), (tf.Qwen3Model if headless else tf.Qwen3ForCausalLM)(config).eval()


def qwen_vl(width):
    rope = {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e6}
    config = tf.Qwen2_5_VLConfig(
        text_config=decoder(width, 2, rope_parameters=rope) | {"head_dim": width // 2},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
        },
    )
    return qwen_tokenizer(), tf.Qwen2_5_VLForConditionalGeneration(config).eval()


def mistral3(width, layers):
    config = tf.Mistral3Config(
        text_config=decoder(width, layers, model_type="mistral"),
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 28,
            "patch_size": 14,
        },
    )
    return mistral_tokenizer(), tf.Mistral3ForConditionalGeneration(config).eval()
