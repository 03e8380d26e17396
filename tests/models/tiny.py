"""Pipelines of every architecture at reduced width: random weights, tiny encoders, no download."""

import diffusers as df

from tests.models.tiny_encoders import clip, gemma2, mistral3, qwen3, qwen_vl, t5


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
