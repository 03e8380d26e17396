"""Transformers in one file, under the names of their original code, as ComfyUI keeps them.

Such a file holds no text encoder. An erasure is applied to it, but made from the model's folder.
"""

from __future__ import annotations

from collections.abc import Iterable

from erase_sd.models.architectures import Architecture, by_name
from erase_sd.models.comfyui_names import COMFYUI

TRANSFORMER = "transformer"
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")

# What tells apart those whose text goes in under the same names: tensors that begin so are there,
# or are not. The first that fits is taken.
_MARKS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("qwen-image", ("txt_norm.",), ()),
    ("chroma", ("distilled_guidance_layer.",), ()),
    ("flux2", ("double_stream_modulation_img.", "guidance_in."), ()),
    ("flux2-klein", ("double_stream_modulation_img.",), ("guidance_in.",)),
    ("flux", ("double_blocks.",), ()),
    ("sd3", ("joint_blocks.",), ()),
    ("z-image", ("cap_pad_token",), ()),
    ("lumina2", ("cap_embedder.0.",), ("cap_pad_token",)),
    ("wan", ("patch_embedding.",), ()),
    ("ltx", ("patchify_proj.",), ()),
    ("pixart", ("y_embedder.",), ("joint_blocks.",)),
)
_SCALES = ("scale_weight", "weight_scale", "scale_input", "absmax", "quant_state", "qweight")


def find(names: Iterable[str]) -> tuple[Architecture, dict[str, str]] | None:
    """The architecture of a transformer, and the stored name of each tensor that reads text.

    Args:
        names: All tensor names of a file.

    Returns:
        None if it holds no transformer that is known.

    Raises:
        ValueError: If these tensors are quantised.

    Example:
        >>> model, stored = find(["txt_in.weight", "txt_norm.weight", "txt_in.bias"])
        >>> model.name, stored
        ('qwen-image', {'txt_in.weight': 'txt_in.weight'})
    """
    names = set(names)
    for prefix in PREFIXES:
        inside = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
        for model, marks, others in _MARKS:
            stored = {f"{ours}.weight": f"{n}.weight" for ours, n in COMFYUI[model].items()}
            there = inside.issuperset(stored.values()) and all(_any(inside, m) for m in marks)
            if not there or any(_any(inside, m) for m in others):
                continue
            for module in COMFYUI[model].values():
                if scaled := sorted(n for n in inside if _scales(n, module)):
                    raise ValueError(
                        f"this {model} transformer is quantised with scales of its own "
                        f"({scaled[0]}); expected one in float8 without, float16, bfloat16 or "
                        "float32"
                    )
            return by_name(model), {ours: prefix + n for ours, n in stored.items()}
    return None


def _any(names: Iterable[str], beginning: str) -> bool:
    return any(n.startswith(beginning) for n in names)


def _scales(name: str, module: str) -> bool:
    return name.startswith(f"{module}.") and any(part in name for part in _SCALES)
