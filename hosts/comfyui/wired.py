"""What is wired into a node, as erase_sd reads it; nothing of ComfyUI is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from erase_sd.artifact.hosted import PREFIX, text_keys
from erase_sd.models.architectures import Architecture, Tower
from erase_sd.models.openclip_names import SPARE_LAYER
from erase_sd.text.encoder import TextEncoder
from erase_sd.text.towers import LoadedTower

# ComfyUI's names of the text encoders, in the order of our towers. Its ViT-H has one layer more
# than Stable Diffusion 2 reads, so that there every layer is counted from one further behind.
TOWERS = {"sd": (("clip_l",), ("clip_h",)), "sdxl": (("clip_l", "clip_g"),)}
SPARE = {"clip_h": 1}


class WiredTower(LoadedTower):
    """One of ComfyUI's text encoders: its own forward pass, patches and all.

    Args:
        spec: What the architecture reads of it.
        name: "clip_l", "clip_h" or "clip_g".
        clip: ComfyUI's CLIP object.
    """

    def __init__(self, spec: Tower, name: str, clip: Any) -> None:
        self.spec, self.name, self.writer = spec, name, None  # CLIPs have no template
        self.model = getattr(clip.cond_stage_model, name)
        self.tokenizer = getattr(clip.tokenizer, name).tokenizer
        self.pad = self.model.special_tokens["pad"]
        self.length = self.model.max_length
        self.width = self.model.transformer.get_input_embeddings().weight.shape[1]
        self.pooled_width = self.width if spec.pooled else 0

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """Its float tensors sorted by name, as a checkpoint's fingerprint has them."""
        unread = [] if self.spec.pooled == "text_embeds" else ["text_projection."]
        if self.name in SPARE:
            unread.append(f"encoder.layers.{SPARE_LAYER}.")
        state = self.model.transformer.state_dict().items()
        named = [(n.removeprefix("text_model."), v) for n, v in state if v.is_floating_point()]
        return sorted((n, v) for n, v in named if not n.startswith(tuple(unread)))

    def read(self, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """See `LoadedTower.read`."""
        # ComfyUI encodes full lines only; a causal encoder's first states are the same in any.
        line = pad(ids, (0, self.length - ids.shape[1]), value=self.pad).tolist()
        states, pooled = [], None
        try:
            for layer in (self.spec.layer, *self.spec.also):
                self.model.set_clip_options({"layer": layer - SPARE.get(self.name, 0)})
                z, pooled = self.model.encode(line)[:2]
                states.append(z[:, : ids.shape[1]])
        finally:
            self.model.reset_clip_options()
        return states, pooled if self.spec.pooled else None


def base_weights(model: Any) -> dict[str, Tensor]:
    """The tensors of a wired MODEL that read text, by diffusers name, without any patch.

    Raises:
        ValueError: If it is none of Stable Diffusion 1, 2 and XL.
    """
    entries = model.get_key_patches(PREFIX)
    return {name: entries[key][0][0] for name, key in text_keys(entries).items()}


def text_encoder(clip: Any, architecture: Architecture) -> TextEncoder:
    """The wired CLIP, as what the wired MODEL reads.

    Raises:
        ValueError: If it is the CLIP of another kind of model.
    """
    clip.load_model()
    for names in TOWERS[architecture.name]:
        if all(hasattr(clip.cond_stage_model, name) for name in names):
            specs = architecture.towers
            towers = [WiredTower(s, n, clip) for s, n in zip(specs, names, strict=True)]
            return TextEncoder(architecture, towers, source="ComfyUI")
    wanted = " or ".join("+".join(names) for names in TOWERS[architecture.name])
    raise ValueError(f"expected the CLIP of this MODEL ({wanted}), got another one")


def lines(text: str) -> Iterator[str]:
    """The prompts in a text box, one a line."""
    return (line.strip() for line in text.splitlines() if line.strip())
