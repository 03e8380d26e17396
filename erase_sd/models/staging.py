"""A writer's own folder beside the place it writes to, told from a dead writer's by its lock.

Where a file system has no locks on folders (some network ones), nothing is taken for dead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("erase_sd")

PART = re.compile(r"\.erase-sd-[0-9a-f]{16}\.part")
COMMIT = re.compile(r"\.erase-sd-[0-9a-f]{16}\.commit")
JOURNAL = "journal.json"


class Staging:
    """A writer's folder in a place, with its lock; the place is made if it is not there.

    Attributes:
        path: The folder. What it holds is nobody else's.
        placed: Whether all that it was made for is in place: what it still holds may go.
    """

    placed = False

    def __init__(self, place: Path) -> None:
        self._made = make_folders(place)
        try:
            self.path, self._descriptor = _claimed(place)
        except BaseException:
            unmake(self._made)
            raise

    def close(self) -> None:
        """Remove the folder, and what was made on the way to it if that is empty."""
        to_its_end(self._close)

    def _close(self) -> None:
        begun = COMMIT.fullmatch(self.path.name) and (self.path / JOURNAL).exists()
        if begun and not self.placed:
            logger.warning(
                "%s is left for the next command there, or `erase-concept doctor --remove`, "
                "to finish",
                self.path,
            )
        else:
            discard(self.path)
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        unmake(self._made)


def to_its_end(step: Callable[[], None]) -> None:
    """Take a step that may be taken twice; a signal in its midst is answered when it is done."""
    try:
        step()
    except Exception:
        raise
    except BaseException:  # Ctrl-C, or a wish that the process should end
        step()
        raise


def free_name(place: Path) -> Path:
    """A staging folder's name that nobody has."""
    return place / f".erase-sd-{uuid.uuid4().hex[:16]}.part"


def make_folders(place: Path) -> list[Path]:
    """Make a folder and those above it; what was made, outermost first."""
    missing: list[Path] = []
    here = place.absolute()
    while not here.exists():
        missing.append(here)
        here = here.parent
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            made.append(folder)
    except BaseException:
        unmake(made)
        raise
    return made


def unmake(made: list[Path]) -> None:
    """Remove folders that were made, as far as they are empty."""
    for folder in reversed(made):
        try:
            folder.rmdir()
        except OSError:  # something stands there by now
            break


def _claimed(place: Path) -> tuple[Path, int | None]:
    """A new staging folder and the descriptor that holds its lock; None where there are none."""
    while True:
        folder = free_name(place)
        try:
            folder.mkdir(mode=0o700)
            held = _held(folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                to_its_end(folder.rmdir)
            raise
        if held:
            return folder, held[0]


def _held(folder: Path) -> tuple[int | None] | None:
    """The lock of a folder, in a tuple; nothing if it was taken for a dead writer's meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None if error.errno == errno.EWOULDBLOCK else (None,)
    there = False
    try:
        there = folder.exists()
    finally:
        if not there:
            os.close(descriptor)
    return (descriptor,) if there else None


def taken_over(folder: Path) -> int | None:
    """The lock of a dead writer's folder, as a descriptor; None if it lives or nobody can tell."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
            return descriptor
    except OSError:  # locked, gone, or without locks
        pass
    os.close(descriptor)
    return None


def discard(path: Path) -> None:
    """Remove a file or a whole folder, of read-only folders too; a warning if it cannot be."""
    try:
        if path.is_dir() and not path.is_symlink():
            for folder, _, _ in os.walk(path):
                os.chmod(folder, 0o700)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning(
            "%s could not be removed (%s); `erase-concept doctor --remove` does", path, error
        )


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or a folder's own names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
