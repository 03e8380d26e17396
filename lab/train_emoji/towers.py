"""Both towers of emoji-clip on disk, under names that every version of transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

TRAIN_TOKENS = 24  # captions are shorter; the causal tower's EOS output does not see the padding


def save_clip(clip: Any, folder: Path) -> None:
    """Save both towers as `folder` and the text tower alone as `folder/text`.

    transformers 5.6 dropped the `text_model.` prefix from CLIPTextModel; older versions then load
    such a file as random weights, while newer ones read both. So the old names are written.
    """
    text = folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in clip.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = clip.config.to_dict()
    config.pop("_name_or_path", None)  # the work folder of whoever trained it
    config["architectures"] = ["CLIPModel"]
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    tower = {k: v for k, v in state.items() if k.startswith("text_model.")}
    save_file(tower, text / "model.safetensors", metadata={"format": "pt"})
    text_config = clip.config.text_config.to_dict()
    text_config["architectures"] = ["CLIPTextModel"]
    (text / "config.json").write_text(json.dumps(text_config, indent=2, default=str))
