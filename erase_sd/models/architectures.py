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

from torch import Tensor

from erase_sd.models import templates
from erase_sd.models.templates import Chat

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
        kind: "clip", "t5", "umt5", or "llm" for a language model that only looks back.
        layer: −1 for the last hidden state (after the final norm), −2 for the one before the last
            layer.
        also: Further layers, counted the same, whose states (after the final norm) hosts feed in
            place of these when their user asks for it ("CLIP skip"): an edit must hold for all.
        taps: Hidden states that are concatenated along features instead of `layer`; 0 is what the
            first layer reads.
        segment: Which token sequence its states belong to; towers of one segment are concatenated
            along features, segments along tokens. None if the denoiser does not read its tokens.
        pooled: Name of the output that goes into the pooled stream, or "".
        length: Tokens a prompt is padded to; None for the encoder's own 77. For a language model
            the most that it reads, its template included.
        masked: Whether padding is hidden from the encoder.
        padding: What the denoiser reads of the padding: all of it, its "first" position, or none.
        template: What stands around a prompt that a language model reads.
        dropped: Tokens of the template that the denoiser is not given.
        window: The denoiser is given the line's first token and the `window − 1` from the last one
            of the template on; 0 for the whole line.
        lowercase: Whether the pipeline takes a prompt in small letters.
    """

    suffix: str = ""
    kind: Literal["clip", "t5", "umt5", "llm"] = "clip"
    layer: int = -1
    also: tuple[int, ...] = ()
    taps: tuple[int, ...] = ()
    segment: int | None = 0
    pooled: str = ""
    length: int | None = None
    masked: bool = False
    padding: Literal["read", "first", "ignored"] = "read"
    template: str | Chat = "{}"
    dropped: int = 0
    window: int = 0
    lowercase: bool = False

    @property
    def causal(self) -> bool:
        """Whether a state depends on nothing that comes later in the line."""
        return self.kind in ("clip", "llm")


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm between the text features and the matrix that reads them.

    Attributes:
        name: Tensor of its weight in the denoiser, by its diffusers name.
        epsilon: Added to the mean square.
    """

    name: str
    epsilon: float

    def __call__(self, states: Tensor, weight: Tensor) -> Tensor:
        """`x / √(mean x² + ε) · weight` of each state, `(…, d)`."""
        size = states.square().mean(-1, keepdim=True) + self.epsilon
        return states * size.rsqrt() * weight.to(states)


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
        norm: What the token states pass before the matrix reads them. Their moments are taken, and
            their edits certified, behind it.
        comfyui: ComfyUI's names of the modules that are edited, by their diffusers names.
    """

    name: str
    denoiser: str
    class_name: str
    patterns: Mapping[Stream, str]
    towers: tuple[Tower, ...]
    requires: Mapping[str, Any] = field(default_factory=dict)
    norm: Norm | None = None
    comfyui: Mapping[str, str] = field(default_factory=dict)

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
        towers=(Tower(kind="t5", length=120, masked=True, padding="ignored", lowercase=True),),
    ),
    Architecture(
        name="chroma",
        denoiser="transformer",
        class_name="ChromaTransformer2DModel",
        patterns={TOKENS: r"^context_embedder\.weight$"},
        towers=(Tower(kind="t5", length=512, masked=True, padding="first"),),
    ),
    Architecture(
        name="ltx",
        denoiser="transformer",
        class_name="LTXVideoTransformer3DModel",
        patterns={TOKENS: r"^caption_projection\.linear_1\.weight$"},
        towers=(Tower(kind="t5", length=128, padding="ignored"),),
    ),
    Architecture(
        name="wan",  # with one transformer: 2.1, and 2.2 of 5 billion weights
        denoiser="transformer",
        class_name="WanTransformer3DModel",
        patterns={TOKENS: r"^condition_embedder\.text_embedder\.linear_1\.weight$"},
        towers=(Tower(kind="umt5", length=512, masked=True, padding="ignored"),),
    ),
    Architecture(
        name="lumina2",  # the empty prompt of guidance is BOS alone, which begins every line
        denoiser="transformer",
        class_name="Lumina2Transformer2DModel",
        patterns={TOKENS: r"^time_caption_embed\.caption_embedder\.1\.weight$"},
        norm=Norm("time_caption_embed.caption_embedder.0.weight", 1e-5),
        towers=(
            Tower(
                kind="llm",
                layer=-2,
                length=256,
                masked=True,
                padding="ignored",
                template=templates.LUMINA2,
            ),
        ),
    ),
    Architecture(
        name="sana",  # likewise
        denoiser="transformer",
        class_name="SanaTransformer2DModel",
        patterns={TOKENS: r"^caption_projection\.linear_1\.weight$"},
        towers=(
            Tower(
                kind="llm",
                length=300,
                masked=True,
                padding="ignored",
                template=templates.SANA,
                window=300,
                lowercase=True,
            ),
        ),
    ),
    Architecture(
        name="qwen-image",  # Edit models too: they read the same matrix, pictures beside the words
        denoiser="transformer",
        class_name="QwenImageTransformer2DModel",
        patterns={TOKENS: r"^txt_in\.weight$"},
        norm=Norm("txt_norm.weight", 1e-6),
        towers=(
            Tower(
                kind="llm",
                length=1024 + 34,
                masked=True,
                padding="ignored",
                template=templates.QWEN_IMAGE,
                dropped=34,
            ),
        ),
    ),
    Architecture(
        name="z-image",
        denoiser="transformer",
        class_name="ZImageTransformer2DModel",
        patterns={TOKENS: r"^cap_embedder\.1\.weight$"},
        norm=Norm("cap_embedder.0.weight", 1e-5),
        towers=(
            Tower(
                kind="llm",
                layer=-2,
                length=512,
                masked=True,
                padding="ignored",
                template=Chat(thinking=True),
            ),
        ),
    ),
    Architecture(
        name="flux2-klein",
        denoiser="transformer",
        class_name="Flux2Transformer2DModel",
        requires={"guidance_embeds": False},
        patterns={TOKENS: r"^context_embedder\.weight$"},
        towers=(
            Tower(
                kind="llm",
                taps=(9, 18, 27),
                length=512,
                masked=True,
                template=Chat(thinking=False),
            ),
        ),
    ),
    Architecture(
        name="flux2",
        denoiser="transformer",
        class_name="Flux2Transformer2DModel",
        patterns={TOKENS: r"^context_embedder\.weight$"},
        towers=(
            Tower(
                kind="llm",
                taps=(10, 20, 30),
                length=512,
                masked=True,
                template=Chat(system=templates.FLUX2, parts=True, reply=False),
            ),
        ),
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
