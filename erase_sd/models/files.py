"""Files: copies at the file system's speed, outputs that appear whole or not at all.

What a run writes stands under a temporary name until it is complete and synced, and then takes its
place by one rename.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROVENANCE = "erasure.json"  # beside model_index.json; diffusers ignores it

ERASURE = "erasure.safetensors"

_CHUNK = 1 << 30


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as f:
        digest = hashlib.sha256()
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target`, whole, or disappears.

    Args:
        target: File or folder to create.
        force: Whether an existing one may be replaced.

    Raises:
        FileExistsError: If it exists and `force` is off.
    """
    check_target(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    old = draft.with_suffix(".old")
    try:
        yield draft
        make_readable(draft)  # the safetensors library writes files that only their owner can read
        _sync(draft)
        if target.is_dir() and not draft.is_dir():
            raise FileExistsError(f"{target} is a folder; name a file")
        if draft.is_dir():
            _place_folder(draft, target, old, force=force)
        elif force:
            os.replace(draft, target)
        else:
            _place_new(draft, target)
        _sync_one(target.parent)
    finally:
        _discard(draft)
        if os.path.lexists(target):  # never the only copy
            _discard(old)


def _place_folder(draft: Path, target: Path, old: Path, *, force: bool) -> None:
    """Rename a folder to a free name, or swap it with the one that is there."""
    try:
        os.rename(draft, target)  # fails if there is a folder with something in it, or a file
        return
    except OSError as error:
        if not os.path.lexists(target):
            raise
        if not force:
            raise FileExistsError(f"{target} exists by now: another process wrote it") from error
    if _exchange(draft, target):
        os.rename(draft, old)  # what it replaced
        return
    os.rename(target, old)  # where the system cannot swap two folders in one call
    try:
        os.rename(draft, target)
    except BaseException:
        os.rename(old, target)
        raise


def _exchange(a: Path, b: Path) -> bool:
    """Swap two paths in one step (Linux's renameat2).

    So that each name always holds something whole.

    Returns:
        False where the system or the file system has no such call; nothing was done then.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(a), here, os.fsencode(b), swap) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(error, os.strerror(error), str(b))


def _place_new(draft: Path, target: Path) -> None:
    try:
        os.link(draft, target)  # unlike a rename, fails if another writer came first
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(draft, target)


def check_target(target: Path, *, force: bool = False) -> None:
    """Refuse to write over what should stay; a folder is replaced only if this tool wrote it.

    Raises:
        FileExistsError: With what to do.
    """
    if not os.path.lexists(target):
        return
    if (
        not target.is_file() and not target.is_dir()
    ):  # renaming over a device would replace the device
        raise FileExistsError(
            f"{target} is a device, a pipe or a broken link; name a file or a folder"
        )
    if not force:
        raise FileExistsError(f"{target} exists; choose another --out or add --force")
    if target.is_dir() and any(target.iterdir()) and not (target / PROVENANCE).is_file():
        raise FileExistsError(
            f"{target} holds no {PROVENANCE}: it was not written by this tool and is not replaced"
        )


def check_apart(out: Path, base: Path) -> None:
    """Refuse an output that is, holds or lies inside the base model."""
    a, b = out.resolve(), base.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise ValueError(f"--out {out} overlaps the base model {base}; choose a folder beside it")


def check_room(out: Path, size: int) -> None:
    """Refuse before the work what would fill the disk after it.

    Raises:
        OSError: With how much is free and how much is needed.
    """
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OSError(
            f"{parent} has {free / 1e9:.1f} GB free, the checkpoint needs {size / 1e9:.1f} GB"
        )


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_readable(path: Path) -> None:
    """Give what was written the modes of any new file under the user's umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    for item in (path, *path.rglob("*")) if path.is_dir() else [path]:
        if not item.is_symlink():
            item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)


def _sync(path: Path) -> None:
    for item in sorted(path.rglob("*")) if path.is_dir() else []:
        _sync_one(item)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fast_copy(source: str | Path, target: str | Path) -> None:
    """Copy a file inside the kernel: file systems that can share blocks copy nothing at all.

    Args:
        source: A file; a symbolic link is followed.
        target: A new file.
    """
    with open(source, "rb") as a, open(target, "xb") as b:
        left = os.fstat(a.fileno()).st_size
        copy = getattr(os, "copy_file_range", None)  # Linux
        try:
            while copy and left:
                done = copy(a.fileno(), b.fileno(), min(left, _CHUNK))
                if done == 0:
                    break
                left -= done
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
                raise
        if left:  # across file systems, or an old kernel: the rest by hand
            shutil.copyfileobj(a, b, 1 << 24)
