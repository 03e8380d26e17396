"""One `.safetensors` in the original layout, as A1111 and ComfyUI keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from erase_sd.models import ldm_names, transformer_files
from erase_sd.models.checkpoint import LEFT_BEHIND, UNDO, Checkpoint, undo_file
from erase_sd.models.files import atomic_paths, fast_copy, make_readable
from erase_sd.models.tensor_files import tensor_names, write_tensors

TOKENIZER = "openai/clip-vit-large-patch14"  # single files hold no tokenizer; this is theirs


@dataclass(frozen=True)
class SingleFile(Checkpoint):
    """One `.safetensors` in the original layout, as A1111 and ComfyUI keep them.

    Attributes:
        kind: "sd1", "sd2" or "sdxl", or "transformer" for one without text encoders.
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
            if transformer := transformer_files.find(names):
                architecture, stored_as = transformer
                at = {name: (path, stored) for name, stored in stored_as.items()}
                return cls(path, architecture, at, transformer_files.TRANSFORMER, tokenizer)
            kind = ldm_names.layout(names)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        architecture = ldm_names.architecture_of(kind)
        where = {}
        for stored in names:
            name = ldm_names.from_ldm(stored)
            if name and architecture.site(name):
                where[name] = (path, stored)
        return cls(path, architecture, where, kind, tokenizer)

    @property
    def reads(self) -> bool:
        """Whether its text encoders are in it."""
        return self.kind != transformer_files.TRANSFORMER

    def check_reads(self) -> None:
        """Refuse it where text encoders are needed.

        Raises:
            ValueError: If it has none.
        """
        if not self.reads:
            raise ValueError(
                f"{self.path} is a {self.architecture.name} transformer; its text encoders are "
                "read from a diffusers folder alone: erase from that, then `erase-concept apply "
                "ERASURE --model FILE`"
            )

    def size(self) -> int:
        """Bytes a copy takes."""
        return self.path.stat().st_size

    def strays(self) -> list[str]:
        """Tensors of an averaged copy of the weights."""
        return [n for n in tensor_names(self.path) if ldm_names.is_averaged(n)]

    def write(
        self,
        out: Path,
        changed: Mapping[str, Tensor],
        files: Mapping[str, bytes],
        *,
        undo: Mapping[str, Tensor] | None = None,
        force: bool = False,
    ) -> None:
        """Copy the file, overwrite the changed tensors where they lie.

        And put small files beside it.

        Header, names, order and every other byte stay.
        """
        if files and self.strays():
            raise ValueError(
                f"{self.path} also holds an averaged copy of the weights ({ldm_names.EMA}*), "
                "which would keep the "
                "concept; take a pruned checkpoint without it, or drop these tensors first"
            )
        beside = [self.beside(out, name) for name in files]
        gone = {self.beside(out, name) for name in LEFT_BEHIND} - {*beside}
        kept = [undo_file(out)] if undo else []
        mine = self.erasure_file(out).is_file()  # else these names are the user's own
        targets = [out, *beside, *kept]
        with atomic_paths(targets, force=force, gone=sorted(gone) if mine else ()) as drafts:
            fast_copy(self.path, drafts[0])
            make_readable(drafts[0])
            self._overwrite(changed, {self.path: drafts[0]})
            for draft, content in zip(drafts[1:], files.values(), strict=False):
                draft.write_bytes(content)
            if undo:
                write_tensors(drafts[-1], undo, UNDO)
