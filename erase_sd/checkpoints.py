"""Checkpoints without a pipeline: read the tensors an edit touches, write a copy with those replaced.

A diffusers folder (also sharded, also a variant) and a single file in the original layout are one
thing: some files, and for every tensor to edit, which of them holds it under which name. The
denoiser is never built.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from erase_sd import ldm
from erase_sd.files import (
    ERASURE,
    PROVENANCE,
    atomic_path,
    check_target,
    fast_copy,
    make_readable,
    overwrite_tensors,
    read_tensors,
    stream_tensors,
    tensor_names,
)
from erase_sd.sites import Architecture, identify

if TYPE_CHECKING:
    from erase_sd.erasure import Erasure
    from erase_sd.text import TextEncoder

LEFT_BEHIND = (PROVENANCE, ERASURE, "report.md", "report.json", "before_after.png")
TOKENIZER = "openai/clip-vit-large-patch14"  # single files hold no tokenizer; this is theirs
# Files that may hold the denoiser's weights once more.
WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".onnx_data", ".pb", ".h5", ".gguf")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        path: Folder or file.
        architecture: What it is.
        where: For each tensor that reads text, by its diffusers name, the file and the name in it.
    """

    path: Path
    architecture: Architecture
    where: Mapping[str, tuple[Path, str]]

    def sites(self, *, kinds: str = "kv") -> list[str]:
        """Diffusers names of the tensors an edit goes to."""
        return self.architecture.sites(self.where, kinds=kinds)

    def weights(self, *, kinds: str = "kv") -> dict[str, Tensor]:
        """Those tensors, by diffusers name, in the file's dtype."""
        return self._read(self.sites(kinds=kinds))

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
            here = {stored: changed[n] for n, (f, stored) in self.where.items() if f == file and n in changed}
            if here:
                overwrite_tensors(copy, here)

    def size(self) -> int:
        """Bytes a copy takes."""
        raise NotImplementedError

    def encoder(self, *, device: str = "cpu") -> TextEncoder:
        """Its text encoders."""
        raise NotImplementedError

    def write(
        self,
        out: Path,
        changed: Mapping[str, Tensor],
        erasure: Erasure | None,
        *,
        force: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write a copy with some tensors replaced, and what was done to it; whole or not at all."""
        raise NotImplementedError

    @staticmethod
    def erasure_file(path: Path) -> Path:
        """Where the erasure of an erased checkpoint lies: inside a folder, beside a file."""
        return path / ERASURE if path.is_dir() else path.with_name(f"{path.stem}.{ERASURE}")


def undo_file(path: Path) -> Path:
    """Where the original tensors of an erased checkpoint are kept on request: beside it, not in it."""
    return path.with_name((path.name if path.suffix != ".safetensors" else path.stem) + ".undo.safetensors")


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
        name = "unet" if (path / "unet").is_dir() or not (path / "transformer").is_dir() else "transformer"
        config = path / name / "config.json"
        settings = _json(config)
        architecture = identify(settings)
        files = _denoiser_files(config.parent, variant)
        names = {stored: file for file in files for stored in tensor_names(file)}
        where = {n: (f, n) for n, f in names.items() if architecture.stream(n)}
        return cls(path, architecture, where, variant)

    @property
    def denoiser_files(self) -> list[Path]:
        """The safetensors files of the denoiser: one, or its shards."""
        return _denoiser_files(self.path / self.architecture.denoiser, self.variant)

    def size(self) -> int:
        """Bytes a copy takes."""
        return sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())

    def encoder(self, *, device: str = "cpu") -> TextEncoder:
        """Load its text encoders, and nothing else of it."""
        from erase_sd.text import TextEncoder

        return TextEncoder.from_folder(self.path, self.architecture, variant=self.variant, device=device)

    def write(
        self,
        out: Path,
        changed: Mapping[str, Tensor],
        erasure: Erasure | None,
        *,
        force: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write a copy of the folder with some tensors replaced; whole or not at all.

        What did not change is copied byte for byte: a text encoder re-saved by another version of
        transformers may not load elsewhere. Other copies of the denoiser's weights (variants, pickles,
        single files) are left behind, since they would still hold the concept.

        Args:
            out: Folder to create.
            changed: New tensors by diffusers name, in the dtype of the old.
            erasure: What was done; None if the copy carries nothing.
            force: Whether a folder written by this tool may be replaced.
            files: Further small files to put into it.
        """
        keep = {f.name for f in self.denoiser_files}
        denoiser = self.path / self.architecture.denoiser

        def leave(folder: str, names: list[str]) -> set[str]:
            here = Path(folder)
            gone = {n for n in names if n == ".git" or n in LEFT_BEHIND}
            if here == self.path:
                gone |= {n for n in names if n.endswith(WEIGHTS) and not (here / n).is_dir()}
            elif here == denoiser:
                index = _index_name(self.variant)
                gone |= {n for n in names if n.endswith(WEIGHTS) and n not in keep}
                gone |= {n for n in names if n.endswith(".index.json") and (n != index or len(keep) == 1)}
            return gone

        with atomic_path(out, force=force) as draft:
            shutil.copytree(self.path, draft, symlinks=False, ignore=leave, copy_function=fast_copy)
            make_readable(draft)  # a read-only base gives read-only copies
            self._overwrite(changed, {f: draft / f.relative_to(self.path) for f in self.denoiser_files})
            if erasure is not None:
                about = json.dumps(erasure.describe(), indent=2, ensure_ascii=False)
                (draft / PROVENANCE).write_text(about, encoding="utf-8")
                erasure.save(draft / ERASURE)
            for name, content in (files or {}).items():
                (draft / name).write_bytes(content)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a model's configuration")
    return value


def _index_name(variant: str) -> str:
    return f"diffusion_pytorch_model.safetensors.index{'.' + variant if variant else ''}.json"


def _denoiser_files(folder: Path, variant: str) -> list[Path]:
    """The denoiser's one file, or the shards that its index names."""
    middle = f".{variant}" if variant else ""
    file = folder / f"diffusion_pytorch_model{middle}.safetensors"
    if file.is_file():
        return [file]
    index = folder / _index_name(variant)
    if not index.is_file():
        have = ", ".join(sorted(p.name for p in folder.glob("*model*"))) or "nothing"
        raise ValueError(f"{folder} holds {have}; expected {file.name} (safetensors only)")
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} has no weight_map")
    names = sorted({str(s) for s in shards.values()})
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}: shards are .safetensors files of the same folder")
        if not (folder / name).is_file():
            raise ValueError(f"{index} names {name}, which is missing: the download is incomplete")
    return [folder / name for name in names]


@dataclass(frozen=True)
class SingleFile(Checkpoint):
    """One `.safetensors` in the original layout, as A1111 and ComfyUI keep them.

    Attributes:
        kind: "sd1", "sd2" or "sdxl".
        tokenizer: Folder or Hub id of its tokenizer, which the file does not hold.
    """

    kind: str = "sd1"
    tokenizer: str = TOKENIZER

    @classmethod
    def open(cls, path: str | Path, *, tokenizer: str = TOKENIZER) -> SingleFile:
        """Look at a file without loading a tensor.

        Raises:
            ValueError: If it is damaged or no checkpoint we know.
        """
        path = Path(path)
        names = tensor_names(path)
        try:
            kind = ldm.layout(names)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        architecture = ldm.architecture_of(kind)
        where = {}
        for stored in names:
            name = ldm.from_ldm(stored)
            if name and architecture.stream(name):
                where[name] = (path, stored)
        return cls(path, architecture, where, kind, tokenizer)

    def size(self) -> int:
        """Bytes a copy takes."""
        return self.path.stat().st_size

    def encoder(self, *, device: str = "cpu") -> TextEncoder:
        """Build its text encoders from its own tensors."""
        from transformers import CLIPTokenizer

        from erase_sd.text import LoadedTower, TextEncoder

        folder = Path(self.tokenizer)
        if (folder / "tokenizer").is_dir():
            folder = folder / "tokenizer"
        try:
            tokenizer = CLIPTokenizer.from_pretrained(str(folder))
        except Exception as error:
            raise ValueError(
                f"cannot load the tokenizer {self.tokenizer}; give --tokenizer a folder with CLIP's vocab.json and "
                "merges.txt, or a diffusers folder of the same model"
            ) from error
        towers = []
        for (prefix, scheme), spec in zip(ldm.TEXT_KEYS[self.kind], self.architecture.towers, strict=True):
            state = dict(stream_tensors(self.path, prefix=prefix))
            model = ldm.text_model(state, scheme, spec, eos=tokenizer.eos_token_id).to(device)
            if scheme == "openclip":  # these were trained with padding by "!", id 0
                tower = LoadedTower(spec, tokenizer, model, pad=0)
            else:
                tower = LoadedTower(spec, tokenizer, model)
            towers.append(tower)
        return TextEncoder(self.architecture, towers, source=str(self.path))

    def write(
        self,
        out: Path,
        changed: Mapping[str, Tensor],
        erasure: Erasure | None,
        *,
        force: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Copy the file, overwrite the changed tensors where they lie, and put the erasure beside it.

        Header, names, order and every other byte stay.

        Args:
            out: File to create.
            changed: New tensors by diffusers name, in the dtype of the old.
            erasure: What was done; None if the copy carries nothing.
            force: Whether an existing file may be replaced.
            files: Further small files, named after the checkpoint.
        """
        check_target(out, force=force)
        if erasure is not None and any(n.startswith(ldm.EMA) for n in tensor_names(self.path)):
            raise ValueError(
                f"{self.path} also holds an averaged copy of the weights ({ldm.EMA}*), which would keep the concept; "
                "take a pruned checkpoint without it, or drop these tensors first"
            )
        with atomic_path(out, force=force) as draft:
            fast_copy(self.path, draft)
            make_readable(draft)
            self._overwrite(changed, {self.path: draft})
            # Beside it first: the checkpoint appears last, with everything about it in place.
            if erasure is not None:
                erasure.save(self.erasure_file(out), force=force)
            for name, content in (files or {}).items():
                with atomic_path(out.with_name(f"{out.stem}.{name}"), force=force) as small:
                    small.write_bytes(content)


def open_checkpoint(
    path: str | Path, *, variant: str = "", allow_pickle: bool = False, tokenizer: str = TOKENIZER
) -> DiffusersFolder | SingleFile:
    """Look at a model on disk, whatever its form.

    Args:
        path: Diffusers folder, single `.safetensors`, or, if allowed, a `.ckpt`.
        variant: Weights variant of a folder.
        allow_pickle: Read a pickle, by torch's loader of weights alone.
        tokenizer: For single files: folder or Hub id of the tokenizer.

    Raises:
        ValueError: If it is none of these.
    """
    path = Path(path)
    if path.is_dir():
        return DiffusersFolder.open(path, variant=variant)
    if not path.exists():
        raise ValueError(f"no such model: {path}")
    if path.suffix in _PICKLES:
        if not allow_pickle:
            raise ValueError(
                f"{path} is a pickle, which can carry code; --allow-pickle reads its tensors by torch's safe loader"
            )
        folder = Path(tempfile.mkdtemp(prefix="erase-sd-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _unpickle(path, folder / f"{path.stem}.safetensors")
        return SingleFile.open(folder / f"{path.stem}.safetensors", tokenizer=tokenizer)
    return SingleFile.open(path, tokenizer=tokenizer)


def _unpickle(path: Path, target: Path) -> None:
    """Rewrite a pickled state dict as safetensors; tensors alone are read, no code runs."""
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} holds more than tensors, or is damaged: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict")
    tensors = {str(k): v.contiguous().clone() for k, v in state.items() if isinstance(v, torch.Tensor)}
    save_file(tensors, target, metadata={"format": "pt"})
