"""Erasing at run time: features edited on their way in, outputs on their way out.

No weight touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.two_sided import TwoSidedEdit
from erase_sd.models.architectures import POOLED, TOKENS, Stream


@dataclass(frozen=True, eq=False)
class FeatureHook:
    """A forward pre-hook of a U-Net: it sees `T x` instead of each text feature `x`.

    All its cross-attentions read the same features; the few matrices of a transformer that do have
    each a `SiteHook`.

    Attributes:
        edits: `T` of each text stream.
    """

    edits: Mapping[Stream, LowRankEdit]

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with edited text features."""
        kwargs = dict(kwargs)
        tokens = self.edits[TOKENS]
        if len(args) > 2:  # UNet2DConditionModel's third; pipelines name it
            args = (*args[:2], tokens.apply_to_features(args[2]), *args[3:])
        else:
            kwargs["encoder_hidden_states"] = tokens.apply_to_features(
                kwargs["encoder_hidden_states"]
            )
        if POOLED in self.edits:
            added = kwargs["added_cond_kwargs"]
            pooled = self.edits[POOLED].apply_to_features(added["text_embeds"])
            kwargs["added_cond_kwargs"] = added | {"text_embeds": pooled}
        return args, kwargs


@dataclass(frozen=True, eq=False)
class SiteHook:
    """A forward hook of one linear module: `y + s (L W T x − y)` instead of `y = W x`.

    The module is asked twice, so it may keep its weight in any form (quantised, offloaded).

    Attributes:
        edit: What happens to the weight.
    """

    edit: TwoSidedEdit

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The edited output."""
        features, width = args[0], self.edit.right.width
        read = features.clone()
        read[..., :width] = self.edit.right.apply_to_features(features[..., :width])
        written = module.forward(read)
        if self.edit.left is not None:  # else the bias, which a host may keep elsewhere, cancels
            bias = getattr(module, "bias", None)
            shift = 0 if bias is None else bias
            written = self.edit.apply_to_outputs(written - shift) + shift
        return output + self.edit.scale * (written - output)
