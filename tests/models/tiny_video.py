"""Pipelines that draw films, at reduced width and random weights."""

import diffusers as df

from tests.models.tiny import ATTENTION, flow
from tests.models.tiny_encoders import t5, umt5


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


def wan_network():
    return df.WanTransformer3DModel(
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


def wan(**more):
    tokenizer, encoder = umt5(96)
    coder = df.AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return df.WanPipeline(
        transformer=wan_network(),
        scheduler=flow(),
        vae=coder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        **more,
    )


def wan22():
    """Wan 2.2's larger kind: one network for the noisy steps, another for the last."""
    return wan(transformer_2=wan_network(), boundary_ratio=0.9)
