"""Semantic Surgery: a concept taken out of the prompt's states, where a gate finds it in them.

A rival that edits no weight: whoever has the weights has everything. It is here to be compared
with, under attacks that know of the gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Gate:
    """When a prompt counts as the concept's.

    Attributes:
        bias: Less than nothing: the mean cosine from which on it does.
        gamma: How sharply.
    """

    bias: float = -0.06
    gamma: float = 0.02

    def __call__(self, states: Tensor, direction: Tensor) -> Tensor:
        """`α`, `(n,)`: how much of the concept is taken out of states `(n, L, d)`; 0 or over 1/2.

        Args:
            states: Token states.
            direction: `(L, d)` the concept's states less the empty prompt's.

        Example:
            >>> direction = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
            >>> Gate()(torch.stack([direction, direction.flip(1)]), direction)
            tensor([1., 0.])
        """
        likeness = F.cosine_similarity(states[:, 1:], direction[1:], dim=-1).mean(1)
        alpha = torch.sigmoid((likeness + self.bias) / self.gamma)
        return alpha * (alpha >= 0.5)


@contextmanager
def semantic_surgery(pipe: Any, concept: str, gate: Gate | None = None) -> Iterator[None]:
    """Take a concept out of whatever the text encoder makes of prompts, for a while.

    `e ← e − α (φ(concept) − φ(""))`; prompts that the gate lets pass stay bit for bit. What is
    passed as `prompt_embeds` is not seen.

    Args:
        pipe: A Stable Diffusion pipeline.
        concept: What to take out; several in one phrase.
        gate: When a prompt counts as the concept's.

    Raises:
        ValueError: If the pipeline has more than one text encoder.

    Source: arXiv 2510.22851, with its defaults.
    """
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError("Semantic Surgery is for pipelines of one text encoder (SD 1.x, 2.x)")
    gate = gate or Gate()
    with torch.no_grad():
        told, empty = (pipe.encode_prompt(p, pipe.device, 1, False)[0][0] for p in (concept, ""))
    direction = told - empty

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        states = output.last_hidden_state
        out = direction[: states.shape[1]]  # an encoder that looks back alone: the same, cut short
        alpha = gate(states, out)[:, None, None]
        output.last_hidden_state = torch.where(alpha > 0, states - alpha * out, states)
        return output

    handle = pipe.text_encoder.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
