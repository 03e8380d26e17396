"""ComfyUI's names of the modules that read text in transformers, by their diffusers names."""

from __future__ import annotations

from collections.abc import Mapping

_POOLED = "time_text_embed.text_embedder.linear_1"
_TXT_IN = {"context_embedder": "txt_in"}

# By architecture; one that is missing is none of ComfyUI's, or is read under kohya's names.
COMFYUI: Mapping[str, Mapping[str, str]] = {
    "sd3": {"context_embedder": "context_embedder", _POOLED: "y_embedder.mlp.0"},
    "flux": {**_TXT_IN, _POOLED: "vector_in.in_layer"},
    "flux2": _TXT_IN,
    "flux2-klein": _TXT_IN,
    "chroma": _TXT_IN,
    "pixart": {"caption_projection.linear_1": "y_embedder.y_proj.fc1"},
    "ltx": {"caption_projection.linear_1": "caption_projection.linear_1"},
    "wan": {"condition_embedder.text_embedder.linear_1": "text_embedding.0"},
    "lumina2": {"time_caption_embed.caption_embedder.1": "cap_embedder.1"},
    "z-image": {"cap_embedder.1": "cap_embedder.1"},
    "qwen-image": {"txt_in": "txt_in"},
}
