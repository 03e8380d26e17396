"""Pipelines of every architecture at reduced width: random weights, tiny encoders, no download."""

import diffusers as df
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


def flow():
    return df.FlowMatchEulerDiscreteScheduler()


def vae(channels=4):
    return df.AutoencoderKL(
        block_out_channels=(32,),
        latent_channels=channels,
        norm_num_groups=32,
        sample_size=16,
        shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )


ATTENTION = {"attention_head_dim": 16, "num_attention_heads": 2}


def sd3(**more):
    (ta, a), (tb, b), (tc, c) = clip(64, projected=True), clip(96, projected=True), t5(192)
    transformer = df.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        caption_projection_dim=32,
        joint_attention_dim=192,
        pooled_projection_dim=160,
        out_channels=4,
        pos_embed_max_size=16,
        **ATTENTION,
        **more,
    )
    return df.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(),
        text_encoder=a,
        tokenizer=ta,
        text_encoder_2=b,
        tokenizer_2=tb,
        text_encoder_3=c,
        tokenizer_3=tc,
    )


def sd35():
    """SD 3.5 medium's kind: blocks with a second attention, among image tokens alone."""
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def flux(Pipeline=df.FluxPipeline):
    (ta, a), (tb, b) = clip(64, projected=False), t5(96)
    transformer = df.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        axes_dims_rope=(4, 4, 8),
        **ATTENTION,
    )
    return Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(),
        text_encoder=a,
        tokenizer=ta,
        text_encoder_2=b,
        tokenizer_2=tb,
    )


def kontext():
    return flux(df.FluxKontextPipeline)


def pixart():
    tokenizer, encoder = t5(96)
    transformer = df.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=96,
        norm_num_groups=16,
        **ATTENTION,
    )
    return df.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae(),
        transformer=transformer,
        scheduler=df.DPMSolverMultistepScheduler(),
    )


def qwen_image():
    tokenizer, encoder = qwen_vl(32)
    transformer = df.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
        **ATTENTION,
    )
    coder = df.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return df.QwenImagePipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=coder,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def z_image():
    tokenizer, encoder = qwen3(32, 3, headless=True)
    transformer = df.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    return df.ZImagePipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(16),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def flux2(encoder, Pipeline=df.Flux2Pipeline, **more):
    tokenizer, model = encoder
    width = 3 * model.config.get_text_config().hidden_size
    transformer = df.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=width,
        axes_dims_rope=[4, 4, 4, 4],
        **ATTENTION,
        **more,
    )
    coder = df.AutoencoderKLFlux2(
        sample_size=32,
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=coder,
        text_encoder=model,
        tokenizer=tokenizer,
    )


def flux2_dev():
    return flux2(mistral3(32, 31))


def flux2_klein():
    # Wide enough that the empty prompt's 512 positions, all of which are read, do not fill it.
    return flux2(qwen3(192, 28), df.Flux2KleinPipeline, guidance_embeds=False)


def chroma():
    tokenizer, encoder = t5(96)
    transformer = df.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=96,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
        **ATTENTION,
    )
    return df.ChromaPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def lumina2():
    tokenizer, encoder = gemma2(32)
    transformer = df.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        cap_feat_dim=32,
    )
    return df.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def sana():
    tokenizer, encoder = gemma2(32)
    transformer = df.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=32,
        **ATTENTION,
    )
    coder = df.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return df.SanaPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=coder,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def ltx():
    tokenizer, encoder = t5(96)
    transformer = df.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=96,
        **ATTENTION,
    )
    coder = df.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    )
    return df.LTXPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=coder,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def wan():
    tokenizer, encoder = umt5(96)
    transformer = df.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        in_channels=16,
        out_channels=16,
        text_dim=96,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
        **ATTENTION,
    )
    coder = df.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return df.WanPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=coder,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
