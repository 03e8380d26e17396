"""Files: copies at the file system's speed, outputs that appear whole or not at all.

What a run writes stands in a folder of its own beside its place until it is complete and synced.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from erase_sd.models.leftovers import sweep
from erase_sd.models.placing import Move, inode, leave, named, own_name, place, settle, take_turn
from erase_sd.models.staging import JOURNAL, Staging, logger, sync, to_its_end

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
    """A temporary path that becomes `target`, whole, or disappears.

    Args:
        target: File or folder to create.
        force: Whether an existing one may be replaced.

    Raises:
        FileExistsError: If it exists and `force` is off.
    """
    with atomic_paths([target], force=force) as (draft,):
        yield draft


@contextmanager
def atomic_paths(
    targets: Sequence[Path], *, force: bool = False, gone: Sequence[Path] = ()
) -> Iterator[list[Path]]:
    """Temporary paths that become `targets`, whole and all together, or disappear.

    What fails after they have taken their places is a warning.

    Args:
        targets: The file or folder itself, then what belongs to it and lies beside it,
            `NAME.SOMETHING`.
        force: Whether existing ones may be replaced.
        gone: What belonged to the one that is replaced, and goes with it.

    Raises:
        FileExistsError: If one exists and `force` is off.
    """
    targets = [named(t) for t in targets]
    gone = [named(g) for g in gone]
    main = targets[0]
    check_beside(main, (*targets, *gone))
    settle(main)
    for target in targets:
        check_target(target, force=force)
    sweep(main.parent)
    staging = Staging(main.parent)
    try:
        names = [str(i) for i in range(len(targets))]
        yield [staging.path / name for name in names]
        for name in names:
            make_readable(staging.path / name)  # some libraries write for the owner alone
            _sync(staging.path / name)
        take_turn(staging, main)
        _place(staging, dict(zip(names, targets, strict=True)), gone, force=force)
        staging.placed = True
        try:
            to_its_end(lambda: _leave(staging))
        except OSError as error:
            logger.warning("%s is in place, but not all is well: %s", main, error)
    finally:
        staging.close()


def _leave(staging: Staging) -> None:
    (staging.path / JOURNAL).unlink(missing_ok=True)  # all it says is done
    sync(staging.path.parent)
    leave(staging)


def _place(
    staging: Staging, drafts: Mapping[str, Path], gone: Sequence[Path], *, force: bool
) -> None:
    """What the staging folder holds goes to its places, if they are still free to be taken."""
    moves = []
    for name, target in drafts.items():
        if not force and os.path.lexists(target):
            raise FileExistsError(f"{target} exists by now: another process wrote it")
        check_target(target, force=force)
        if target.is_dir() and not (staging.path / name).is_dir():
            raise FileExistsError(f"{target} is a folder; name a file")
        if target.is_file() and (staging.path / name).is_dir():
            raise FileExistsError(f"{target} is a file; name a folder")
        moves.append(Move(target.name, name, inode(staging.path / name)))
    moves += [
        Move(old.name, str(i), inode(old), goes=True)
        for i, old in enumerate((g for g in gone if os.path.lexists(g)), len(moves))
    ]
    place(staging.path, moves)


def check_target(target: Path, *, force: bool = False) -> None:
    """Refuse to write over what should stay; a folder is replaced only if this tool wrote it.

    Raises:
        FileExistsError: With what to do.
        ValueError: If the name is not UTF-8: safetensors opens no such file.
    """
    if any(0xD800 <= ord(c) <= 0xDFFF for c in str(target)):
        raise ValueError(f"expected a name in UTF-8, got {str(target)!r}")
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


def check_beside(main: Path, others: Sequence[Path]) -> None:
    """Refuse what cannot take its place together with an output.

    Args:
        main: The output.
        others: Paths that should belong to it and lie beside it, `NAME.SOMETHING`.

    Raises:
        ValueError: Naming one that does not.
    """
    main = named(main)
    for other in (named(o) for o in others):
        if other.parent != main.parent or not own_name(main.name, other.name):
            like = main.with_name(main.name.removesuffix(".safetensors") + ".SOMETHING")
            raise ValueError(f"expected what belongs to {main} beside it, as {like}, got {other}")


def check_apart(out: Path, *read: Path | None) -> None:
    """Refuse an output that is, holds or lies inside something that is read.

    Args:
        out: File or folder to write.
        *read: What is read: a model, an erasure.

    Raises:
        ValueError: If it does.
    """
    here = out.resolve()
    for path in (p.resolve() for p in read if p is not None):
        if here == path or here in path.parents or path in here.parents:
            raise ValueError(f"--out {out} overlaps what is read, {path}; choose another place")


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


def make_readable(path: Path) -> None:
    """Give what was written the modes of any new file under the user's umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    for item in (path, *path.rglob("*")) if path.is_dir() else [path]:
        if not item.is_symlink():
            item.chmod((0o777 if item.is_dir() else 0o666) & ~umask)


def _sync(path: Path) -> None:
    for item in sorted(path.rglob("*")) if path.is_dir() else []:
        sync(item)
    sync(path)


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
