"""The networks of emoji-sd and how each is built; all are standard classes."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from erase_sd.emoji.clip import TOKENS
from erase_sd.emoji.world import SIZE

TEXT_WIDTH = 192
LATENT_CHANNELS = 4
DOWN = 4  # pixels of an image per pixel of its latent, each way


def build_vae() -> AutoencoderKL:
    """4x downsampling autoencoder: (3, 64, 64) in [-1, 1] to (4, 16, 16)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    """Three-level U-Net on 16x16 latents; seven cross-attentions, so 14 key/value matrices."""
    return UNet2DConditionModel(
        sample_size=SIZE // DOWN,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(4, 4, 6),  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR, without which plain backgrounds drift towards gray."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # unused by trailing spacing; diffusers warns about any other value
        rescale_betas_zero_snr=True,
    )


def build_clip(vocab_size: int) -> CLIPModel:
    """Small CLIP: causal text tower of 77 tokens, ViT-8 image tower at 64 px."""
    tower: dict[str, Any] = dict(
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=6,
        projection_dim=TEXT_WIDTH,
    )
    text = CLIPTextConfig(
        **tower,
        vocab_size=vocab_size,
        max_position_embeddings=TOKENS,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    vision = CLIPVisionConfig(**tower, image_size=SIZE, patch_size=8)
    return CLIPModel(
        CLIPConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH
        )
    )
