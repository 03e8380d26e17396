import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


@pytest.fixture(scope="session")
def tiny_parts(embedded):
    """Configurations of a Stable Diffusion that is tiny but whole; its tokenizer is emoji-sd's."""
    return CLIPTokenizer.from_pretrained(embedded / "tokenizer", local_files_only=True)


@pytest.fixture(params=["epsilon"])
def tiny(request, tiny_parts):
    """A pipeline of random weights, the same in every test."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        norm_num_groups=4, attention_head_dim=4,
    ).eval()  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tiny_parts), hidden_size=16, intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2, eos_token_id=tiny_parts.eos_token_id,
        )
    ).eval()  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8
    ).eval()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, prediction_type=request.param,
        timestep_spacing="trailing",
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae, text, tiny_parts, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
