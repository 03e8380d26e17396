"""Whether somebody else wrote to a weight since we did, without keeping a second copy of it."""

from __future__ import annotations

import torch
from torch import Tensor


def sketch(weight: Tensor) -> Tensor:
    """A weight `(d_out, d_in)` times one fixed vector, `(d_out,)` float32 on the CPU.

    >>> differs(torch.eye(2), sketch(torch.eye(2))), differs(torch.eye(2), sketch(torch.ones(2, 2)))
    (False, True)
    """
    wide = weight.detach().float()
    along = torch.arange(wide.shape[1], device=wide.device).mul(7.0).cos()
    return (wide @ along).cpu()


def differs(weight: Tensor, before: Tensor) -> bool:
    """Whether a weight is another than the one sketched before.

    By more than rounding: a LoRA that was fused and unfused again leaves that.
    """
    room = 2 * torch.finfo(weight.dtype).eps * float(weight.detach().float().norm())
    return float((sketch(weight) - before).norm()) > room
