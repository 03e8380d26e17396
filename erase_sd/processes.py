"""Several processes at one task: under `accelerate launch`, or `torchrun` on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """This process's part of the work; by default all of it.

    Attributes:
        process: Its number; the first one writes.
        processes: How many there are.
        wait: Returns when all have come as far.
        device: Where it computes.
    """

    process: int = 0
    processes: int = 1
    wait: Callable[[], None] = lambda: None
    device: str = "cpu"

    @classmethod
    def of(cls, device: str) -> Share:
        """What the launcher says.

        Args:
            device: What was asked for; under a launcher, each process of "cuda" has its own.

        >>> Share.of("cpu").processes
        1
        """
        state = PartialState(cpu=device == "cpu")
        own = str(state.device) if device == "cuda" else device
        return cls(state.process_index, state.num_processes, state.wait_for_everyone, own)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of all processes' tensors, the same in each."""
        if self.processes == 1:
            return value
        found: Tensor = reduce(value, "mean")
        return found
