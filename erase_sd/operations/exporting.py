"""An erasure as a LoRA that other tools load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.lora import LoraStyle, save_lora, second_file
from erase_sd.models.checkpoint import Checkpoint
from erase_sd.models.embedded import EMBEDDED
from erase_sd.models.files import check_apart, check_target
from erase_sd.operations.common import Run, load_erasure, open_model

Dtype = Literal["float32", "float16"]


# Read off the hosts' own code; docs/howto.md has the same table.
LOADS: dict[tuple[str, LoraStyle], str] = {
    ("sd", "peft"): "diffusers; A1111, Forge and ComfyUI want --style kohya",
    ("sd", "kohya"): "A1111, Forge, ComfyUI, InvokeAI, sd-scripts, diffusers",
    ("sdxl", "peft"): "diffusers; A1111, Forge and ComfyUI want --style kohya",
    ("sdxl", "kohya"): "A1111, Forge, ComfyUI, InvokeAI, diffusers from 0.39 on; sd-scripts drops "
    "the pooled path (label_emb)",
    ("sd3", "peft"): "diffusers, ComfyUI",
    ("flux", "peft"): "diffusers, ComfyUI",
    ("pixart", "peft"): "ComfyUI; diffusers' PixArt pipelines have no load_lora_weights",
}


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        out: The file.
        style: Its key names.
        rank: Its rank.
        size: Its bytes.
        loads: Which hosts load it; "" if that is not known.
        second: The file for the second network of a model that draws with two.
    """

    out: Path
    style: LoraStyle
    rank: int
    size: int
    loads: str = ""
    second: Path | None = None

    def json(self) -> dict[str, Any]:
        """For programs."""
        about = {"bytes": self.size, "rank": self.rank, "style": self.style, "loads": self.loads}
        second = {"second": str(self.second)} if self.second else {}
        return {"out": str(self.out), **second, **about}

    def lines(self) -> list[str]:
        """For people."""
        size = f"{self.size / 1000:.0f} kB"
        lines = [f"wrote {self.out}: {self.style} LoRA, rank {self.rank}, {size}"]
        if self.second:
            lines.append(f"wrote {self.second}: the same for the second network, transformer_2")
        return [*lines, f"loads in {self.loads}"] if self.loads else lines


def export(
    erasure: Erasure | str | Path,
    out: str | Path,
    *,
    model: str | Path | Checkpoint = EMBEDDED,
    style: LoraStyle = "peft",
    dtype: Dtype = "float32",
    allow_other_base: bool = False,
    run: Run | None = None,
) -> Exported:
    """Write an exact LoRA whose weight is the scale of the erasure: 0 the original, 1 erased.

    Args:
        erasure: An erasure, or a file or erased checkpoint that holds one.
        out: File to write.
        model: Its base model, from whose weights the factors are made.
        style: "peft" for diffusers, "kohya" for web UIs and ComfyUI with a U-Net, "comfyui" for
            ComfyUI with a transformer.
        dtype: dtype of the factors.
        allow_other_base: Export for a model with other weights, such as a fine-tune.
        run: How to run.

    Raises:
        WrongBase: If the model is not its base.
        ValueError: On an unknown style or dtype.
        FileExistsError: If `out` exists.

    Example:
        >>> import tempfile
        >>> from erase_sd import erase
        >>> cat = erase("emoji-sd", ["cat"], run=Run(dry_run=True)).erasure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(cat, Path(folder) / "no-cat.safetensors", style="kohya")
        ...     print(done.out.is_file())
        True
    """
    run = run or Run()
    if dtype not in ("float32", "float16"):
        raise ValueError(f"expected a dtype of float32 or float16, got {dtype!r}")
    total = load_erasure(erasure)
    base = open_model(model, run.source)
    check_apart(Path(out), base.path, None if isinstance(erasure, Erasure) else Path(erasure))
    check_target(Path(out), force=run.force)
    weights = base.weights(kinds=total.kinds)
    path = save_lora(
        total,
        weights,
        out,
        style=style,
        dtype=getattr(torch, dtype),
        force=run.force,
        allow_other_base=allow_other_base,
    )
    loads = LOADS.get((total.architecture, style), "")
    second = second_file(path) if any(s.second for s in total.editable(weights)) else None
    return Exported(path, style, total.rank, path.stat().st_size, loads, second)
