"""The laboratory's own judge: another architecture, another seed, renders alone.

It looks at what the shipped judge looks at, and was made in no common step with it or with the
generator; where the two agree, neither's habits explain the number.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from erase_sd.emoji.world import load_world

WEIGHTS = Path(__file__).parent / "weights" / "judge2.safetensors"


class SecondJudge(nn.Module):
    """A plain pyramid of convolutions; each question looks where it finds its answer.

    The shipped judge strides, normalises by batch and pools by mean and maximum; this one pools in
    between, normalises by groups, and weighs the places of the last map anew for each question.

    Args:
        width: Channels of the first map; the others have twice, four and six times as many.

    >>> [tuple(x.shape) for x in SecondJudge(8)(torch.zeros(2, 3, 64, 64))]
    [(2, 69), (2, 5), (2, 8)]
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        world = load_world()
        answers = len(world.concepts), len(world.artists), len(world.backgrounds)
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 4 * width, 6 * width):
            layers += [
                nn.Conv2d(channels, out, 3, padding=1),
                nn.GroupNorm(8, out),
                nn.GELU(),
                nn.MaxPool2d(2),
            ]
            channels = out
        self.trunk = nn.Sequential(*layers)
        self.places = nn.Parameter(torch.zeros(1, channels, 4, 4))
        self.where = nn.ModuleList(nn.Conv2d(channels, n, 1) for n in answers)
        self.what = nn.ModuleList(nn.Conv2d(channels, n, 1) for n in answers)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(n, 3, 64, 64)` in [-1, 1] to logits of objects (independent), artist and background."""
        x = self.trunk(images) + self.places
        o, a, b = (
            (where(x).flatten(2).softmax(2) * what(x).flatten(2)).sum(2)
            for where, what in zip(self.where, self.what, strict=True)
        )
        return o, a, b


def load_second_judge(path: Path = WEIGHTS) -> SecondJudge | None:
    """The trained second judge, in eval mode; None where nobody trained one."""
    if not path.is_file():
        return None
    judge = SecondJudge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()
