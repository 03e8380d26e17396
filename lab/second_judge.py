"""The laboratory's own judge: another architecture, another seed, renders alone.

It looks at what the shipped judge looks at, and was made in no common step with it or with the
generator; where the two agree, neither's habits explain the number.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from erase_sd.emoji.world import SIZE, load_world

WEIGHTS = Path(__file__).parent / "weights" / "judge2.safetensors"


class SecondJudge(nn.Module):
    """A small vision transformer: overlapping 8-pixel patches, one token for each question.

    Args:
        width: Of its tokens.
        depth: Blocks.

    >>> [tuple(x.shape) for x in SecondJudge(32, 1)(torch.zeros(2, 3, 64, 64))]
    [(2, 69), (2, 5), (2, 8)]
    """

    def __init__(self, width: int = 128, depth: int = 5) -> None:
        super().__init__()
        world = load_world()
        heads = len(world.concepts), len(world.artists), len(world.backgrounds)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
        )
        self.questions = nn.Parameter(torch.randn(1, len(heads), width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, (SIZE // 8) ** 2, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, 4, 3 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in heads)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(n, 3, 64, 64)` in [-1, 1] to logits of objects (independent), artist and background."""
        patches = self.stem(images).flatten(2).transpose(1, 2) + self.places
        tokens = torch.cat([self.questions.expand(len(images), -1, -1), patches], dim=1)
        answers = self.norm(self.blocks(tokens)[:, : len(self.heads)])
        o, a, b = (head(answers[:, i]) for i, head in enumerate(self.heads))
        return o, a, b


def load_second_judge(path: Path = WEIGHTS) -> SecondJudge | None:
    """The trained second judge, in eval mode; None where nobody trained one."""
    if not path.is_file():
        return None
    judge = SecondJudge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval()
