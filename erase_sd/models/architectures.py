"""Where an edit goes, per architecture.

Which tensors read the prompt, and how the prompt reaches them.

A *stream* is one kind of text feature. "tokens" are the states of every token, which attention
reads; "pooled" is one vector for the whole prompt, which modulates the network. Each has its own
edit: a model that reads both leaks through whichever is forgotten.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from erase_sd.models import templates
from erase_sd.models.templates import Chat
from erase_sd.models.towers import Norm, Tower

Stream = Literal["tokens", "pooled"]
Kinds = Literal["k", "v", "kv"]
TOKENS: Stream = "tokens"
POOLED: Stream = "pooled"
# Stands before the names of the tensors of a second network, which draws the last steps.
SECOND = "transformer_2."


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
    def second(self) -> bool:
        """Whether it lies in the second of two networks."""
        return self.name.startswith(SECOND)

    @property
    def writes_values(self) -> bool:
        """Whether what it writes is what attention passes on (and not only where it looks)."""
        return self.stream == TOKENS and self.kind != "k"


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
        elsewhere: What else tells the network of the prompt and is not edited, in a sentence.
    """

    name: str
    denoiser: str
    class_name: str
    patterns: Mapping[Stream, str]
    towers: tuple[Tower, ...]
    requires: Mapping[str, Any] = field(default_factory=dict)
    norm: Norm | None = None
    elsewhere: str = ""

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
_CONTEXT: dict[Stream, str] = {TOKENS: r"^context_embedder\.weight$"}
_POOLED: dict[Stream, str] = {POOLED: r"^time_text_embed\.text_embedder\.linear_1\.weight$"}
_CAPTION: dict[Stream, str] = {TOKENS: r"^caption_projection\.linear_1\.weight$"}

# Language models are not shown their padding, and most networks neither.
_llm = functools.partial(Tower, kind="llm", masked=True, padding="ignored")


def _transformer(
    name: str, class_name: str, patterns: Mapping[Stream, str], *towers: Tower, **more: Any
) -> Architecture:
    return Architecture(name, "transformer", f"{class_name}Model", patterns, towers, **more)


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
    _transformer(
        "sd3",  # 3.5 too: its second attention is among image tokens and reads no text
        "SD3Transformer2D",
        _CONTEXT | _POOLED,
        Tower(layer=-2, pooled="text_embeds"),
        Tower("_2", layer=-2, pooled="text_embeds"),
        Tower("_3", kind="t5", segment=1, length=256),
    ),
    _transformer(
        "flux",  # 1, with Kontext, Fill and all that share its network
        "FluxTransformer2D",
        _CONTEXT | _POOLED,
        Tower(segment=None, pooled="pooler_output"),
        Tower("_2", kind="t5", length=512),
        elsewhere="Kontext, Fill and Redux are given pictures, which nothing here edits.",
    ),
    _transformer(
        "pixart",
        "PixArtTransformer2D",
        _CAPTION,
        Tower(kind="t5", length=120, masked=True, padding="ignored", lowercase=True),
    ),
    _transformer(
        "chroma",
        "ChromaTransformer2D",
        _CONTEXT,
        Tower(kind="t5", length=512, masked=True, padding="first"),
    ),
    _transformer(
        "ltx", "LTXVideoTransformer3D", _CAPTION, Tower(kind="t5", length=128, padding="ignored")
    ),
    _transformer(
        "wan",  # 2.1, and 2.2 with one transformer or two, which read the same states
        "WanTransformer3D",
        {TOKENS: r"^(transformer_2\.)?condition_embedder\.text_embedder\.linear_1\.weight$"},
        Tower(kind="umt5", length=512, masked=True, padding="ignored"),
        elsewhere="From a picture to a film, `add_k_proj` and `add_v_proj` read the picture.",
    ),
    _transformer(
        "lumina2",  # the empty prompt of guidance is BOS alone, which begins every line
        "Lumina2Transformer2D",
        {TOKENS: r"^time_caption_embed\.caption_embedder\.1\.weight$"},
        _llm(layer=-2, length=256, template=templates.LUMINA2),
        norm=Norm("time_caption_embed.caption_embedder.0.weight", 1e-5),
    ),
    _transformer(
        "sana",  # likewise
        "SanaTransformer2D",
        _CAPTION,
        _llm(length=300, template=templates.SANA, window=300, lowercase=True),
    ),
    _transformer(
        "qwen-image",  # Edit models too: the same matrix reads words and pictures
        "QwenImageTransformer2D",
        {TOKENS: r"^txt_in\.weight$"},
        _llm(length=1024 + 34, template=templates.QWEN_IMAGE, dropped=34),
        norm=Norm("txt_norm.weight", 1e-6),
        elsewhere="Edit models put pictures through the same matrix, under another template than "
        "the one that the edit is made from.",
    ),
    _transformer(
        "z-image",
        "ZImageTransformer2D",
        {TOKENS: r"^cap_embedder\.1\.weight$"},
        _llm(layer=-2, length=512, template=Chat(thinking=True)),
        norm=Norm("cap_embedder.0.weight", 1e-5),
    ),
    _transformer(
        "flux2-klein",
        "Flux2Transformer2D",
        _CONTEXT,
        _llm(taps=(9, 18, 27), length=512, padding="read", template=Chat(thinking=False)),
        requires={"guidance_embeds": False},
    ),
    _transformer(
        "flux2",
        "Flux2Transformer2D",
        _CONTEXT,
        _llm(
            taps=(10, 20, 30),
            length=512,
            padding="read",
            template=Chat(system=templates.FLUX2, parts=True, reply=False),
        ),
        elsewhere="Pictures for reference are not edited; `upsample_prompt` rewrites the prompt.",
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
