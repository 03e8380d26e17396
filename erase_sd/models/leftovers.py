"""What dead writers left in a place: found by its name and its lock, removed or finished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from erase_sd.models.placing import forward, read_journal
from erase_sd.models.staging import COMMIT, PART, discard, logger, taken_over


@dataclass(frozen=True)
class Leftover:
    """What lies in a place and belongs to nobody's result.

    Attributes:
        path: The staging folder.
        bytes: What it takes.
        in_use: Whether a living process has it, or none can tell.
        decided: Whether its things were about to take their places.
    """

    path: Path
    bytes: int
    in_use: bool
    decided: bool

    def remove(self) -> bool:
        """Remove it, or finish what was decided; whether it is gone. What is in use stays."""
        descriptor = taken_over(self.path)
        if descriptor is None:
            return not os.path.lexists(self.path)
        try:
            moves = read_journal(self.path) if self.decided else []
            for move in moves:
                forward(self.path, move)
            discard(self.path)
        finally:
            os.close(descriptor)
        return not os.path.lexists(self.path)


def leftovers(where: Path) -> Iterator[Leftover]:
    """Staging folders that lie in a folder itself."""
    for entry in sorted(os.scandir(where), key=lambda e: e.name):
        decided = bool(COMMIT.fullmatch(entry.name))
        if (decided or PART.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False):
            path = Path(entry.path)
            descriptor = taken_over(path)
            if descriptor is not None:
                os.close(descriptor)
            size = sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())
            yield Leftover(path, size, descriptor is None, decided)


def sweep(where: Path) -> None:
    """Remove what dead writers left in a folder; looked at once by a process."""
    if where.is_dir():
        _swept(str(where.absolute()), os.stat(where).st_ino)


@cache
def _swept(where: str, _: int) -> None:
    try:
        for one in leftovers(Path(where)):
            if not one.in_use and not one.decided:
                one.remove()
    except OSError as error:  # a courtesy: what is asked for does not depend on it
        logger.warning("what lies in %s could not be looked at: %s", where, error)
