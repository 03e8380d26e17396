"""Checkpoints without a pipeline.

Read the tensors an edit touches, write a copy with those replaced.

A diffusers folder (also sharded, also a variant) and a single file in the original layout are one
thing: some files, and for every tensor to edit, which of them holds it under which name. The
denoiser is never built.
"""

from __future__ import annotations

import abc
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from erase_sd.models.architectures import SECOND, Architecture, Kinds, Site, identify
from erase_sd.models.files import ERASURE, PROVENANCE, atomic_paths, fast_copy, make_readable
from erase_sd.models.network_files import index_name, network_files, read_json
from erase_sd.models.safety import check_folder, is_pickle
from erase_sd.models.tensor_files import (
    overwrite_tensors,
    read_tensors,
    tensor_names,
    write_tensors,
)

UNDO = {"erase_sd": "undo"}  # metadata of a file of original tensors
LEFT_BEHIND = (PROVENANCE, ERASURE, "report.md", "report.json", "before_after.png")

# Files that may hold the denoiser's weights once more.
WEIGHTS = (
    ".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack",
    ".onnx", ".onnx_data", ".pb", ".h5", ".gguf",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint(abc.ABC):
    """A model on disk.

    Attributes:
        path: Folder or file.
        architecture: What it is.
        where: For each tensor that reads text or norms it, by its diffusers name, the file and the
            name in it.
    """

    path: Path
    architecture: Architecture
    where: Mapping[str, tuple[Path, str]]

    def sites(self, *, kinds: Kinds = "kv") -> list[Site]:
        """The tensors an edit goes to."""
        return self.architecture.sites(self.where, kinds=kinds)

    def weights(self, *, kinds: Kinds = "kv") -> dict[str, Tensor]:
        """Those tensors, by diffusers name, in the file's dtype.

        Raises:
            ValueError: If one is no matrix.
        """
        found = self._read([site.name for site in self.sites(kinds=kinds)])
        for name, weight in found.items():
            if weight.ndim < 2:
                raise ValueError(f"{self.path}: expected a matrix as {name}, got {[*weight.shape]}")
        return found

    def norm(self) -> Tensor | None:
        """Weight of the norm that text features pass before they are read, if there is one."""
        norm = self.architecture.norm
        if norm is None:
            return None
        if norm.name not in self.where:
            raise ValueError(f"{self.path} lacks the denoiser's {norm.name}")
        return self._read([norm.name])[norm.name]

    def _read(self, names: list[str]) -> dict[str, Tensor]:
        by_file: dict[Path, dict[str, str]] = {}
        for name in names:
            file, stored = self.where[name]
            by_file.setdefault(file, {})[stored] = name
        found: dict[str, Tensor] = {}
        for file, own in by_file.items():
            found |= {own[k]: v for k, v in read_tensors(file, own).items()}
        return found

    def _overwrite(self, changed: Mapping[str, Tensor], copies: Mapping[Path, Path]) -> None:
        """Write changed tensors into copies of the files that hold them."""
        for file, copy in copies.items():
            here = {
                stored: changed[n]
                for n, (f, stored) in self.where.items()
                if f == file and n in changed
            }
            if here:
                overwrite_tensors(copy, here)

    @abc.abstractmethod
    def size(self) -> int:
        """Bytes a copy takes."""

    @abc.abstractmethod
    def write(
        self,
        out: Path,
        changed: Mapping[str, Tensor],
        files: Mapping[str, bytes],
        *,
        undo: Mapping[str, Tensor] | None = None,
        force: bool = False,
    ) -> None:
        """Write a copy with some tensors replaced, and small files that belong to it.

        Whole or not at all.

        Args:
            out: Folder or file to create.
            changed: New tensors by diffusers name, in the dtype of the old.
            files: Small files by name: inside a folder, named after a single file and beside it.
            undo: Original tensors to keep beside it, for `restore` to put back.
            force: Whether an existing output of this tool may be replaced.
        """

    @abc.abstractmethod
    def strays(self) -> list[str]:
        """Names of other weights in it that may still hold what was erased."""

    @staticmethod
    def beside(path: Path, name: str) -> Path:
        """Where a small file of an erased checkpoint lies.

        Inside a folder, beside a single file.
        """
        return path / name if path.is_dir() else path.with_name(f"{path.stem}.{name}")

    @classmethod
    def erasure_file(cls, path: Path) -> Path:
        """Where the erasure of an erased checkpoint lies."""
        return cls.beside(path, ERASURE)


def undo_file(path: Path) -> Path:
    """Where the original tensors of an erased checkpoint are kept on request.

    Beside it, not in it.
    """
    return path.with_name(
        (path.name if path.suffix != ".safetensors" else path.stem) + ".undo.safetensors"
    )


@dataclass(frozen=True)
class DiffusersFolder(Checkpoint):
    """A diffusers checkpoint: `model_index.json` and a folder for each component.

    Attributes:
        variant: "" or a variant such as "fp16".
    """

    variant: str = ""

    @classmethod
    def open(cls, path: str | Path, *, variant: str = "") -> DiffusersFolder:
        """Look at a folder without loading a tensor.

        Raises:
            ValueError: If it is no diffusers checkpoint, or one we do not know.
        """
        path = Path(path)
        if not path.exists():
            raise ValueError(f"no such model: {path}")
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} is not a diffusers checkpoint: it has no model_index.json")
        check_folder(path)
        name = (
            "unet"
            if (path / "unet").is_dir() or not (path / "transformer").is_dir()
            else "transformer"
        )
        architecture = identify(read_json(path / name / "config.json"))
        second = path / f"{name}_2"
        if second.is_dir() and (name, identify(read_json(second / "config.json"))) != (
            "transformer",
            architecture,
        ):
            raise ValueError(
                f"expected {name}/ and {name}_2/ of {path} to be two transformers of one kind"
            )
        whole = cls(path, architecture, {}, variant).whole()
        norm = architecture.norm.name if architecture.norm else ""
        where = {n: at for n, at in whole.where.items() if architecture.site(n) or n == norm}
        return replace(whole, where=where)

    @property
    def networks(self) -> dict[str, Path]:
        """The folders of the networks that read text, one or two, by what their names begin with.

        Both of two are edited: what one of them no longer reads the other would draw.
        """
        name = self.architecture.denoiser
        both = {"": self.path / name, SECOND: self.path / f"{name}_2"}
        return {prefix: folder for prefix, folder in both.items() if folder.is_dir()}

    @property
    def denoiser_files(self) -> list[Path]:
        """The safetensors files of the denoiser: one, or its shards; of both if there are two."""
        return [f for folder in self.networks.values() for f in network_files(folder, self.variant)]

    def whole(self) -> DiffusersFolder:
        """The same folder, with every tensor of the denoiser open to change."""
        names = {
            prefix + n: (file, n)
            for prefix, folder in self.networks.items()
            for file in network_files(folder, self.variant)
            for n in tensor_names(file)
        }
        return replace(self, where=names)

    def size(self) -> int:
        """Bytes a copy takes."""
        return sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())

    def strays(self) -> list[str]:
        """Other weight files beside the denoiser's."""
        own = {*self.denoiser_files, self.path / ERASURE}
        places = (*self.networks.values(), self.path)
        found = [p for place in places for p in place.iterdir() if p not in own]
        return [str(p.relative_to(self.path)) for p in found if p.name.endswith(WEIGHTS)]

    def write(
        self,
        out: Path,
        changed: Mapping[str, Tensor],
        files: Mapping[str, bytes],
        *,
        undo: Mapping[str, Tensor] | None = None,
        force: bool = False,
    ) -> None:
        """Write a copy of the folder with some tensors replaced; whole or not at all.

        What did not change is copied byte for byte: a text encoder re-saved by another version of
        transformers may not load elsewhere. Other copies of the denoiser's weights (variants,
        pickles, single files) are left behind, since they would still hold the concept.
        """

        def leave(folder: str, names: list[str]) -> set[str]:
            here = Path(folder)
            gone = {n for n in names if n == ".git" or n in LEFT_BEHIND or is_pickle(n)}
            if here == self.path:
                gone |= {n for n in names if n.endswith(WEIGHTS) and not (here / n).is_dir()}
            elif here in self.networks.values():
                keep = {f.name for f in network_files(here, self.variant)}
                index = index_name(self.variant)
                middle = f".{self.variant}" if self.variant else ""
                whole = f"diffusion_pytorch_model{middle}.safetensors"  # needs no index
                gone |= {n for n in names if n.endswith(WEIGHTS) and n not in keep}
                gone |= {
                    n for n in names if n.endswith(".index.json") and (n != index or whole in keep)
                }
            return gone

        with atomic_paths([out, *([undo_file(out)] if undo else [])], force=force) as drafts:
            draft = drafts[0]
            shutil.copytree(self.path, draft, symlinks=False, ignore=leave, copy_function=fast_copy)
            make_readable(draft)  # a read-only base gives read-only copies
            self._overwrite(
                changed, {f: draft / f.relative_to(self.path) for f in self.denoiser_files}
            )
            for name, content in files.items():
                (draft / name).write_bytes(content)
            if undo:
                write_tensors(drafts[1], undo, UNDO)
