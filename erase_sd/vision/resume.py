"""What a training leaves behind after each epoch, so that one that was cut off goes on from there.

A later caller finds the end result in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from erase_sd.models.files import atomic_path


@dataclass
class Saved:
    """The state of one training, in a file or nowhere.

    Attributes:
        path: The file; None keeps nothing.
        about: The recipe, the seed and the data in words; a file about something else is refused.
        model: What is trained.
        optimizer: Its optimizer.
        generator: What draws the order of samples.

    >>> model = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> Saved(None, "", model, optimizer, torch.Generator()).restore()
    0
    """

    path: Path | None
    about: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    _before: float = 0.0
    _start: float = field(default_factory=time.process_time)

    def restore(self) -> int:
        """Epochs that are done already; model, optimizer and generator are as they left them.

        Raises:
            ValueError: If the file is of another training.
        """
        if self.path is None or not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        if state["about"] != self.about:
            raise ValueError(
                f"{self.path} is of another training: expected {self.about}, got {state['about']}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self._before = float(state["seconds"])
        return int(state["epoch"])

    def keep(self, epoch: int) -> None:
        """Write the state after an epoch, atomically."""
        if self.path is None:
            return
        seconds = self._before + time.process_time() - self._start
        state: dict[str, Any] = {"epoch": epoch, "about": self.about, "seconds": seconds}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"generator": self.generator.get_state()}
        with atomic_path(self.path, force=True) as draft:
            torch.save(state, draft)


def spent(path: Path) -> float:
    """Processor seconds that a kept training took so far, its runs together; 0 without a file."""
    if not path.exists():
        return 0.0
    return float(torch.load(path, weights_only=True)["seconds"])
