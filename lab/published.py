"""Configurations of published models: shapes and names, no numbers."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from erase_sd.emoji.models import EMOJI_SD

TOKENIZER = (
    EMOJI_SD / "tokenizer"
)  # of small models, and a stand-in for CLIP's own in full-size ones
Kind = Literal["sd1", "sd2", "sdxl"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_CROSS_DOWN, _DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
_CROSS_UP, _UP = "CrossAttnUpBlock2D", "UpBlock2D"


def _clip(width: int, layers: int, *, small: int, act: str, projection: int = 0) -> dict[str, Any]:
    width, layers = (small, 2) if small else (width, layers)
    vocab = len(json.loads((TOKENIZER / "vocab.json").read_text())) if small else 49408
    return dict(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, vocab_size=vocab, max_position_embeddings=77,
        hidden_act=act, projection_dim=(width if small else projection) or width, bos_token_id=vocab
        - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1,
    )  # fmt: skip


def configs(kind: str, *, small: bool = False) -> dict[str, dict[str, Any]]:
    """Configurations of a published model's U-Net, autoencoder and text encoders, by component.

    Args:
        kind: Of `KINDS`.
        small: Narrow widths, the same names.

    Raises:
        ValueError: On another kind.

    >>> list(configs("sdxl"))
    ['unet', 'vae', 'text_encoder', 'text_encoder_2']
    """
    if kind not in KINDS:
        raise ValueError(f"expected a kind of {', '.join(KINDS)}, got {kind!r}")
    unet, text = _sdxl(small) if kind == "sdxl" else _sd(kind == "sd2", small)
    unet |= dict(in_channels=4, out_channels=4, layers_per_block=2)
    vae = dict(
        block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=128 if small else 512,
    )
    return {"unet": unet, "vae": vae, **text}


def _sdxl(small: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """U-Net and text encoders of SDXL."""
    text = {
        "text_encoder": _clip(768, 12, small=64 * small, act="quick_gelu"),
        "text_encoder_2": _clip(1280, 32, small=128 * small, act="gelu", projection=1280),
    }
    width, pooled = (192, 128) if small else (2048, 1280)
    unet = dict(
        block_out_channels=(32, 64, 64) if small else (320, 640, 1280),
        down_block_types=(_DOWN, _CROSS_DOWN, _CROSS_DOWN),
        up_block_types=(_CROSS_UP, _CROSS_UP, _UP),
        transformer_layers_per_block=(1, 1, 2) if small else (1, 2, 10),
        attention_head_dim=(2, 2, 2) if small else (5, 10, 20),
        cross_attention_dim=width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=pooled + 6 * 256,
        sample_size=16 if small else 128,
    )
    return unet, text


def _sd(two: bool, small: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """U-Net and text encoder of Stable Diffusion 1 or 2."""
    size, act = ((1024, 23), "gelu") if two else ((768, 12), "quick_gelu")
    text = {"text_encoder": _clip(*size, small=128 * small, act=act)}
    unet: dict[str, Any] = dict(
        block_out_channels=(32, 64, 64, 64) if small else (320, 640, 1280, 1280),
        down_block_types=(_CROSS_DOWN,) * 3 + (_DOWN,),
        up_block_types=(_UP,) + (_CROSS_UP,) * 3,
        attention_head_dim=2 if small else (5, 10, 20, 20) if two else 8,
        cross_attention_dim=128 if small else 1024 if two else 768,
        use_linear_projection=two,
        sample_size=16 if small else 96 if two else 64,
    )
    return unet, text
