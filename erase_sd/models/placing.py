"""How outputs take their places: all of them together, or none.

Complete and synced, a writer's staging folder takes the one name that a target has for this, so
that two writers of one target take turns. Where several things must move, a *journal* says which
goes where. Who dies before the journal has written nothing; what a dead one's journal says is
finished by whoever comes next, reader or writer.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from erase_sd.models.staging import JOURNAL, Staging, discard, free_name, sync, taken_over

PATIENCE = 30.0  # seconds that one writer waits for another to put its result in place
_LONGEST = 1_000_000  # bytes of a journal
_HERE = -100  # AT_FDCWD
_NO_REPLACE, _EXCHANGE = 1, 2  # of Linux's renameat2


@dataclass(frozen=True)
class Move:
    """One thing that takes its place.

    Attributes:
        name: Of its place.
        draft: Of it in the staging folder.
        inode: Its own, or, for what only goes away, that of what stands in its place. What a swap
            puts under the draft's name has another.
        goes: Whether nothing takes the place.
    """

    name: str
    draft: str
    inode: int
    goes: bool = False


def named(target: Path) -> Path:
    """A path that ends in the thing's own name, as `.` and `..` do not."""
    return target.resolve() if target.name in ("", "..") else target.absolute()


def commit_folder(target: Path) -> Path:
    """The staging folder's name while a target is put in place."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".erase-sd-{digest}.commit")


def own_name(target: str, name: str) -> bool:
    """Whether a name is a target's or of something that belongs to it: `x.safetensors`, `x.md`."""
    stem = target.removesuffix(".safetensors")
    return os.sep not in name and (name == target or name.startswith(stem + "."))


def take_turn(staging: Staging, target: Path) -> None:
    """Give the staging folder the name that a target has for one writer at a time.

    Raises:
        TimeoutError: If another writer does not come to an end.
    """
    commit, end = commit_folder(target), time.monotonic() + PATIENCE
    # An empty folder would be replaced by the next writer's: once all is in place, before it is
    # left, this one must not be empty.
    (staging.path / "turn").touch()
    while True:
        try:
            os.rename(staging.path, commit)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        settle(target, until=end)
    staging.path = commit


def leave(staging: Staging) -> None:
    """Free a target's name for the next writer."""
    free = free_name(staging.path.parent)
    os.rename(staging.path, free)
    staging.path = free


def place(folder: Path, moves: list[Move]) -> None:
    """Put everything in its place, or, where that fails, everything back.

    Args:
        folder: A staging folder whose turn it is.
        moves: What goes where.
    """
    done: list[Move] = []
    if len(moves) == 1 and not moves[0].goes and _one_step(folder, moves[0]):
        return
    try:
        _write_journal(folder, moves)
        for move in moves:
            done.append(move)
            forward(folder, move)
    except BaseException as error:
        if isinstance(error, Exception) or not done:
            for move in reversed(done):
                _back(folder, move)
        else:  # an interrupt: it comes too late
            for move in moves:
                forward(folder, move)
        (folder / JOURNAL).unlink(missing_ok=True)
        raise


def _one_step(folder: Path, move: Move) -> bool:
    """Whether one call of the system was enough."""
    draft, target = folder / move.draft, folder.parent / move.name
    if os.path.lexists(target):
        return _rename(draft, target, _EXCHANGE)
    if not _rename(draft, target, _NO_REPLACE):
        os.rename(draft, target)
    return True


def forward(folder: Path, move: Move) -> None:
    """Put one thing in its place, unless it is there already."""
    draft, target, aside = _paths(folder, move)
    if move.goes:
        if _inode(target) == move.inode:
            os.rename(target, aside)
    elif _inode(draft) == move.inode:  # else it is in its place already
        if os.path.lexists(target):
            if _rename(draft, target, _EXCHANGE):
                return
            os.rename(target, aside)
        os.rename(draft, target)


def _back(folder: Path, move: Move) -> None:
    draft, target, aside = _paths(folder, move)
    if not move.goes and _inode(target) == move.inode:
        if os.path.lexists(draft):
            _rename(draft, target, _EXCHANGE)
            return
        os.rename(target, draft)
    if os.path.lexists(aside) and not os.path.lexists(target):
        os.rename(aside, target)


def _paths(folder: Path, move: Move) -> tuple[Path, Path, Path]:
    return folder / move.draft, folder.parent / move.name, folder / f"{move.draft}.old"


def inode(path: Path) -> int:
    """The number of a file or folder itself, whatever its name."""
    return os.lstat(path).st_ino


def _inode(path: Path) -> int | None:
    return inode(path) if os.path.lexists(path) else None


def _rename(a: Path, b: Path, how: int) -> bool:
    """Rename in one step, swapping or refusing to replace.

    Returns:
        False where the system or the file system has no such call; nothing was done then.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if call(_HERE, os.fsencode(a), _HERE, os.fsencode(b), how) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(error, os.strerror(error), str(b))


def _write_journal(folder: Path, moves: list[Move]) -> None:
    sync(folder.parent)  # the folder's new name first
    draft = folder / f"{JOURNAL}.new"
    draft.write_text(json.dumps([asdict(m) for m in moves]), encoding="utf-8")
    sync(draft)
    os.rename(draft, folder / JOURNAL)
    sync(folder)


def read_journal(folder: Path) -> list[Move]:
    """What a dead writer had decided; nothing if it had not, or if it is not one of ours.

    A journal may have come with a stranger's folder, so it moves what belongs to its target alone.
    """
    path = folder / JOURNAL
    if not os.path.lexists(path):
        return []
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST:
            raise ValueError("it is no regular file, or too long")
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, list):
            raise ValueError("it is no list")
        moves = [Move(**m) for m in told]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder} holds no journal of ours: {error}; remove it") from error
    for i, move in enumerate(moves):
        if (
            not isinstance(move.name, str)
            or commit_folder(folder.parent / moves[0].name) != folder
            or not own_name(moves[0].name, move.name)
            or move.draft != str(i)
        ):
            raise ValueError(f"{folder} holds no journal of ours; remove it")
    return moves


def settle(target: Path, *, until: float | None = None) -> None:
    """Finish, before a target is read or written, what a dead writer has begun to put in place.

    Args:
        target: The file or folder.
        until: The time, of `time.monotonic`, until which a living writer is waited for.

    Raises:
        TimeoutError: If a living one does not come to an end.
        ValueError: If something else stands in its way.
    """
    target = named(target)
    if not target.name:  # the root
        return
    commit = commit_folder(target)
    until = time.monotonic() + PATIENCE if until is None else until
    while os.path.lexists(commit):
        descriptor = taken_over(commit)
        if descriptor is not None:
            try:
                for move in read_journal(commit):
                    forward(commit, move)
                free = free_name(commit.parent)
                os.rename(commit, free)
                discard(free)
            finally:
                os.close(descriptor)
        elif time.monotonic() > until:
            raise TimeoutError(f"another process has been putting {target} in place for too long")
        else:
            time.sleep(0.01)
