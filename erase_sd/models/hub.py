"""The Hugging Face Hub, by its own library: what is named there comes here, what is pushed goes.

Nothing else speaks to it. The library's own settings hold: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub  # its parts are imported when they are asked for


def is_hub_id(name: str) -> bool:
    """Whether a name can be a Hub id, OWNER/NAME.

    >>> is_hub_id("ann/no-cat"), is_hub_id("./no-cat"), is_hub_id("ann/no-cat.safetensors")
    (True, False, False)
    """
    plain = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    return plain and not name.endswith(".safetensors")


@contextmanager
def in_a_line(what: str) -> Iterator[None]:
    """Tell in one line why something cannot be had: the libraries raise many kinds, at length.

    Args:
        what: What cannot be had or done.

    Raises:
        ValueError: For whatever was raised.
    """
    try:
        yield
    except Exception as error:
        told = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
        reason = re.split(r"[.(]\s", told, maxsplit=1)[0].strip().rstrip(".")
        raise ValueError(f"{what}: {reason}") from error


def local_file(name: str | Path, file: str, *, revision: str | None = None) -> Path:
    """A file on this disk: the one named, a folder's, or that of a Hub id, fetched if need be.

    Args:
        name: Path of a file or a folder, or a Hub id; what exists here is not looked for there.
        file: Its name in a folder and on the Hub.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        ValueError: If a Hub id cannot be had.
    """
    path = Path(name)
    if path.is_dir():
        return path / file
    if path.exists() or not is_hub_id(str(name)):
        return path
    at = f" at revision {revision}" if revision else ""
    with in_a_line(f"nothing is named {name} here, and {file} of that Hub id{at} cannot be had"):
        return Path(huggingface_hub.hf_hub_download(str(name), file, revision=revision))


def push(
    repo_id: str, files: Mapping[str, bytes | Path], *, message: str, private: bool | None = None
) -> str:
    """Put files into a Hub repository in one commit; the repository is made if there is none.

    Args:
        repo_id: OWNER/NAME, or NAME alone for the one who is logged in.
        files: Content, or the file that holds it, by name.
        message: Of the commit.
        private: Whether a new repository is; None is what the owner has set.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If it cannot be done.
    """
    added = [
        huggingface_hub.CommitOperationAdd(
            name, content if isinstance(content, bytes) else str(content)
        )
        for name, content in files.items()
    ]
    with in_a_line(f"{repo_id} cannot be pushed to"):
        api = huggingface_hub.HfApi()
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.create_commit(repo, added, commit_message=message).commit_url)
