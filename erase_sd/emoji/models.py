"""The networks of emoji-sd and how each is built; all are standard classes but the judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erase_sd.emoji.world import HERE, SIZE, load_world

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

WEIGHTS = HERE / "weights"
EMOJI_SD = WEIGHTS / "emoji-sd"
EMOJI_CLIP = WEIGHTS / "emoji-clip"
IMAGE_TOWER = "image_tower.safetensors"
JUDGE = WEIGHTS / "judge.safetensors"

TEXT_WIDTH = 192
LATENT_CHANNELS = 4
DOWN = 4  # pixels of an image per pixel of its latent, each way
TOKENS = 77


def build_vae() -> AutoencoderKL:
    """4x downsampling autoencoder: (3, 64, 64) in [-1, 1] to (4, 16, 16)."""
    from diffusers import AutoencoderKL

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
    from diffusers import UNet2DConditionModel

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
    from diffusers import DDIMScheduler

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
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

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
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH))


def build_tokenizer(corpus: list[str], folder: Path, *, vocab_size: int = 2048) -> CLIPTokenizer:
    """Train CLIP's byte-pair encoding on a corpus and save it in CLIP's own file format."""
    import json

    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size - 2 - len(alphabet),
            end_of_word_suffix="</w>",
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt]
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Judge(nn.Module):
    """Independent classifier of scenes: which objects, which artist, which background.

    Trained on renders and their VAE reconstructions; the generator's training never sees it.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        world = load_world()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 4 * width, 6 * width):
            layers += [
                nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
                _Residual(out),
            ]
            channels = out
        self.trunk = nn.Sequential(*layers)
        features = 2 * channels  # mean for the ground, maximum for the objects
        self.features = features
        self.objects = nn.Linear(features, len(world.concepts))
        self.artist = nn.Linear(features, len(world.artists))
        self.background = nn.Linear(features, len(world.backgrounds))

    def embed(self, images: Tensor) -> Tensor:
        """`(n, 3, 64, 64)` in [-1, 1] to `(n, features)`."""
        x = self.trunk(images)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of objects (independent), artist and background (exclusive)."""
        x = self.embed(images)
        return self.objects(x), self.artist(x), self.background(x)


def load_clip(weights: Path = WEIGHTS) -> tuple[Any, Any]:
    """The shipped emoji-clip and its tokenizer, float32, in eval mode.

    Its text tower is emoji-sd's text encoder, so the package holds it once.
    """
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = weights / "emoji-clip"
    clip = CLIPModel(CLIPConfig.from_pretrained(folder, local_files_only=True))
    state = load_file(folder / IMAGE_TOWER)
    state |= load_file(weights / "emoji-sd" / "text_encoder" / "model.safetensors")
    clip.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return clip.eval(), CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def load_judge(path: Path = JUDGE) -> Judge:
    """The shipped judge, in eval mode and float32."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return judge.eval()
