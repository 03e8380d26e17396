"""Where an edit goes, per architecture.

Which tensors read the prompt, and how the prompt reaches them.

A *stream* is one kind of text feature. "tokens" are the states of every token, which attention
reads; "pooled" is one vector for the whole prompt, which modulates the network. Each has its own
edit: a model that reads both leaks through whichever is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stream = Literal["tokens", "pooled"]
Kinds = Literal["k", "v", "kv"]
TOKENS: Stream = "tokens"
POOLED: Stream = "pooled"


@dataclass(frozen=True, order=True)
class Site:
    """One tensor that reads the prompt.

    Attributes:
        name: Its diffusers name, e.g.
            `mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight`.
        stream: Which text features it reads.
        kind: "k" for keys, "v" for values, "" where one matrix feeds both.
    """

    name: str
    stream: Stream = TOKENS
    kind: Literal["k", "v", ""] = ""

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.name.removesuffix(".weight")

    @property
    def writes_values(self) -> bool:
        """Whether what it writes is what attention passes on (and not only where it looks)."""
        return self.stream == TOKENS and self.kind != "k"


@dataclass(frozen=True)
class Tower:
    """One text encoder of an architecture.

    Attributes:
        suffix: It lies in `text_encoder{suffix}/` and `tokenizer{suffix}/`.
        kind: "clip" or "t5".
        layer: −1 for the last hidden state (after the final norm), −2 for the one before the last
            layer.
        also: Further layers, counted the same, whose states (after the final norm) hosts feed in
            place of these when their user asks for it ("CLIP skip"): an edit must hold for all.
        segment: Which token sequence its states belong to; towers of one segment are concatenated
            along features, segments along tokens. None if the denoiser does not read its tokens.
        pooled: Name of the output that goes into the pooled stream, or "".
        length: Tokens a prompt is padded to; None for the encoder's own 77.
        masked: Whether padding is hidden from the encoder.
    """

    suffix: str = ""
    kind: str = "clip"
    layer: int = -1
    also: tuple[int, ...] = ()
    segment: int | None = 0
    pooled: str = ""
    length: int | None = None
    masked: bool = False


@dataclass(frozen=True)
class Architecture:
    """One family of diffusion models.

    Attributes:
        name: Short name.
        denoiser: Sub-folder of a diffusers checkpoint that holds the network.
        class_name: Its `_class_name` in `config.json`.
        requires: Further entries of `config.json`; None means absent or null.
        patterns: For each stream, a regular expression over tensor names. A group `kind`, "k" or
            "v", tells keys from values.
        towers: The text encoders, in the order of their features.
    """

    name: str
    denoiser: str
    class_name: str
    patterns: Mapping[Stream, str]
    towers: tuple[Tower, ...]
    requires: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether a denoiser's `config.json` belongs to this architecture."""
        return config.get("_class_name") == self.class_name and all(
            config.get(key) == value for key, value in self.requires.items()
        )

    def site(self, name: str) -> Site | None:
        """What a tensor reads, or None if it reads no text."""
        for stream, pattern in self.patterns.items():
            if m := re.search(pattern, name):
                return Site(name, stream, m.groupdict().get("kind") or "")  # type: ignore[arg-type]
        return None

    def sites(self, names: Iterable[str], *, kinds: Kinds = "kv") -> list[Site]:
        """The tensors to edit, sorted by name.

        Args:
            names: All tensor names of the denoiser.
            kinds: "k" or "v" for keys or values alone; "kv" for everything that reads text.

        Raises:
            ValueError: If there are none.
        """
        found = [s for name in names if (s := self.site(name)) and kinds in ("kv", s.kind)]
        if not found:
            what = {"k": "keys", "v": "values"}.get(kinds, "text projections")
            raise ValueError(f"this {self.name} checkpoint has no separate {what} to edit")
        return sorted(found)


_CROSS_ATTENTION = r"attn2\.to_(?P<kind>[kv])\.weight$"
_EMBEDDERS: dict[Stream, str] = {
    TOKENS: r"^context_embedder\.weight$",
    POOLED: r"^time_text_embed\.text_embedder\.linear_1\.weight$",
}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="sd",  # Stable Diffusion 1.x and 2.x, and everything of their shape
        denoiser="unet",
        class_name="UNet2DConditionModel",
        requires={"addition_embed_type": None, "encoder_hid_dim_type": None},
        patterns={TOKENS: _CROSS_ATTENTION},
        towers=(Tower(also=(-2,)),),
    ),
    Architecture(
        name="sdxl",
        denoiser="unet",
        class_name="UNet2DConditionModel",
        requires={"addition_embed_type": "text_time", "encoder_hid_dim_type": None},
        # linear_1 reads the pooled text in its first columns, picture sizes in the rest.
        patterns={TOKENS: _CROSS_ATTENTION, POOLED: r"^add_embedding\.linear_1\.weight$"},
        towers=(Tower(layer=-2), Tower("_2", layer=-2, pooled="text_embeds")),
    ),
    Architecture(
        name="sd3",
        denoiser="transformer",
        class_name="SD3Transformer2DModel",
        patterns=_EMBEDDERS,
        towers=(
            Tower(layer=-2, pooled="text_embeds"),
            Tower("_2", layer=-2, pooled="text_embeds"),
            Tower("_3", kind="t5", segment=1, length=256),
        ),
    ),
    Architecture(
        name="flux",
        denoiser="transformer",
        class_name="FluxTransformer2DModel",
        patterns=_EMBEDDERS,
        towers=(Tower(segment=None, pooled="pooler_output"), Tower("_2", kind="t5", length=512)),
    ),
    Architecture(
        name="pixart",
        denoiser="transformer",
        class_name="PixArtTransformer2DModel",
        patterns={TOKENS: r"^caption_projection\.linear_1\.weight$"},
        towers=(Tower(kind="t5", length=120, masked=True),),
    ),
)


def identify(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a denoiser's `config.json`.

    Raises:
        ValueError: If it is none of the known ones, with their list.
    """
    for architecture in ARCHITECTURES:
        if architecture.matches(config):
            return architecture
    known = ", ".join(f"{a.name} ({a.class_name})" for a in ARCHITECTURES)
    extra = "".join(
        f" with {key} {config[key]}"
        for key in ("addition_embed_type", "encoder_hid_dim_type")
        if config.get(key)
    )
    raise ValueError(f"unsupported denoiser {config.get('_class_name')}{extra}; supported: {known}")


def by_name(name: str) -> Architecture:
    """The architecture of a registry name.

    Raises:
        ValueError: If there is none.
    """
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    raise ValueError(
        f"unknown architecture {name!r}; there are {', '.join(a.name for a in ARCHITECTURES)}"
    )
