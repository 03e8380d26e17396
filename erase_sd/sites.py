"""Where an edit goes: the key and value projections that read the prompt, per architecture."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One family of diffusion models.

    Attributes:
        name: Short name.
        denoiser: Sub-folder of a diffusers checkpoint that holds the network.
        class_name: Its `_class_name` in `config.json`.
        pattern: Regular expression over tensor names; its group `kind` is "k" or "v".
        text: How the prompt is encoded: which folders, in which order.
    """

    name: str
    denoiser: str
    class_name: str
    pattern: str
    text: tuple[str, ...]

    def matches(self, config: dict[str, Any]) -> bool:
        """Whether a denoiser's `config.json` belongs to this architecture."""
        return config.get("_class_name") == self.class_name and not config.get("addition_embed_type")

    def sites(self, names: Iterable[str], *, kinds: str = "kv") -> list[str]:
        """The tensors to edit, sorted.

        Args:
            names: All tensor names of the denoiser.
            kinds: "k", "v" or "kv".

        Raises:
            ValueError: If there are none.
        """
        found = sorted(n for n in names if (m := re.search(self.pattern, n)) and m["kind"] in kinds)
        if not found:
            raise ValueError(f"no cross-attention projections in this checkpoint, expected {self.pattern}")
        return found


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="sd",  # Stable Diffusion 1.x and 2.x, and everything of their shape
        denoiser="unet",
        class_name="UNet2DConditionModel",
        pattern=r"attn2\.to_(?P<kind>[kv])\.weight$",
        text=("text_encoder",),
    ),
)


def identify(config: dict[str, Any]) -> Architecture:
    """The architecture of a denoiser's `config.json`.

    Raises:
        ValueError: If it is none of the known ones, with their list.
    """
    for architecture in ARCHITECTURES:
        if architecture.matches(config):
            return architecture
    known = ", ".join(f"{a.name} ({a.class_name})" for a in ARCHITECTURES)
    extra = f" with {config['addition_embed_type']} embeddings" if config.get("addition_embed_type") else ""
    raise ValueError(f"unsupported denoiser {config.get('_class_name')}{extra}; supported: {known}")
