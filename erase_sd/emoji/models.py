"""Where the shipped networks of the embedded world lie."""

from __future__ import annotations

from erase_sd.emoji.world import HERE

WEIGHTS = HERE / "weights"
EMOJI_SD = WEIGHTS / "emoji-sd"
EMOJI_CLIP = WEIGHTS / "emoji-clip"
IMAGE_TOWER = "image_tower.safetensors"  # in EMOJI_CLIP; its text tower is emoji-sd's text encoder
JUDGE = WEIGHTS / "judge.safetensors"
