"""An erasure in a program that holds a U-Net under the original code's names.

ComfyUI, A1111 and Forge do. What reads text there, and whether an erasure is for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.erasure import Erasure
from erase_sd.models.architectures import Architecture, by_name
from erase_sd.models.ldm_names import UNET, from_ldm

PREFIX = UNET.removeprefix("model.")


def architecture_of(names: Iterable[str]) -> Architecture:
    """Which of our architectures some tensors belong to.

    Args:
        names: Diffusers names.

    Raises:
        WrongBase: If they are none of Stable Diffusion 1, 2 and XL.
    """
    known = set(names)
    if not any(name.endswith("attn2.to_k.weight") for name in known):
        raise WrongBase("expected a MODEL of Stable Diffusion 1, 2 or XL, got another kind")
    return by_name("sdxl" if "add_embedding.linear_1.weight" in known else "sd")


def text_keys(keys: Iterable[str]) -> dict[str, str]:
    """The host's keys of the tensors that read text, by their diffusers names.

    Args:
        keys: Keys such as "diffusion_model.middle_block.1.….attn2.to_k.weight".

    Raises:
        WrongBase: If they are of no kind we know.

    >>> text_keys(["diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"])
    {'mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight': \
'diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight'}
    """
    known = {name: key for key in keys if (name := from_ldm(f"model.{key}"))}
    kind = architecture_of(known)
    return {name: key for name, key in known.items() if kind.site(name)}


def check_fits(
    erasure: Erasure, weights: Mapping[str, Tensor], *, allow_other_base: bool = False
) -> None:
    """Refuse a model that an erasure is not for.

    Args:
        erasure: The erasure.
        weights: The tensors that read text, by diffusers name, as in the checkpoint.
        allow_other_base: Whether another model of the same kind will do, such as a fine-tune.

    Raises:
        WrongBase: With what differs.
    """
    found = architecture_of(weights).name
    if erasure.architecture != found:
        raise WrongBase(f"expected a MODEL of kind {erasure.architecture}, got {found}")
    width = next(w.shape[1] for n, w in weights.items() if n.endswith("attn2.to_k.weight"))
    if width != erasure.edit.width:
        raise WrongBase(
            f"expected a MODEL with text of width {erasure.edit.width}, got one of {width}"
        )
    if not allow_other_base:
        erasure.check_base(weights)
