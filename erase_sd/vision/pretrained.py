"""Models and image processors of transformers: classifiers as plain logits, zero-shot CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erase_sd.models.whole import whole

TEMPLATES = ("a photo of a {}",)


class Logits(nn.Module):
    """A transformers image classifier (ViT, Swin, ConvNeXt, …) that returns plain logits.

    Attributes:
        network: The classifier.
        processor: How its images are prepared; written beside it, not a module.
    """

    def __init__(self, network: Any, processor: Any = None) -> None:
        super().__init__()
        self.network = network
        self.processor = processor

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, classes)`."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits

    def fresh(self) -> Logits:
        """The same architecture, its weights drawn anew by its own rules."""
        return Logits(type(self.network)(self.network.config), self.processor)

    @property
    def labels(self) -> tuple[str, ...]:
        """Its own names of the classes, in its order; empty where it has only numbers."""
        names = self.network.config.id2label
        found = tuple(str(names[i]) for i in range(len(names)))
        return () if all(n == f"LABEL_{i}" for i, n in enumerate(found)) else found

    def knows(self, names: Sequence[str]) -> bool:
        """Whether it has classes of all these names; capitals do not matter."""
        own = {n.lower() for n in self.labels}
        return all(n.lower() in own for n in names)

    def save(self, folder: Path) -> None:
        """Write the folder that transformers reads, its image processor included."""
        self.network.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)


class ZeroShot(nn.Module):
    """CLIP's image tower with the embeddings of class names as a frozen classifier.

    Attributes:
        vision: The image tower.
        projection: To the shared space.
        names: `(classes, d)` unit text embeddings.
        scale: Logit scale.
        whole: The CLIP model that the tower is part of, its tokenizer and its image processor: not
            modules of this one, since unlearning touches the image tower alone.
    """

    names: Tensor
    scale: Tensor

    def __init__(
        self, clip: Any, names: Tensor, tokenizer: Any = None, processor: Any = None
    ) -> None:
        super().__init__()
        self.vision = clip.vision_model
        self.projection = clip.visual_projection
        self.register_buffer("names", F.normalize(names, dim=1))
        self.register_buffer("scale", clip.logit_scale.detach().exp().clamp(max=100))
        self.whole = (clip, tokenizer, processor)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, classes)`."""
        seen = F.normalize(self.projection(self.vision(pixel_values=x).pooler_output), dim=1)
        return self.scale * seen @ self.names.T

    def save(self, folder: Path) -> None:
        """Write the folder that transformers reads: both towers, tokenizer and image processor."""
        for part in self.whole:
            if part is not None:
                part.save_pretrained(folder)


def zero_shot(
    clip: Any,
    tokenizer: Any,
    classes: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    processor: Any = None,
) -> ZeroShot:
    """A zero-shot classifier of a `CLIPModel`.

    The mean unit embedding of each class name in the templates.
    """
    total = torch.zeros(len(classes), clip.config.projection_dim)
    length = clip.config.text_config.max_position_embeddings
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    with torch.no_grad():
        for template in templates:
            prompts = [template.format(c) for c in classes]
            inputs = tokenizer(prompts, return_tensors="pt", **options)
            out = clip.text_projection(clip.text_model(inputs.input_ids).pooler_output)
            total += F.normalize(out, dim=1)
    return ZeroShot(clip, total, tokenizer, processor).eval()


def classifier(where: str) -> Logits:
    """An image classifier from a transformers folder or the Hub.

    Raises:
        ValueError: If it cannot be loaded whole; for a CLIP, how to give one.
    """
    from transformers import AutoModelForImageClassification

    try:
        network = whole(AutoModelForImageClassification, where)
    except ValueError as error:
        hint = f"; for zero-shot CLIP give clip:{where}" if _is_clip(where) else ""
        raise ValueError(f"no image classifier of transformers{hint} ({error})") from error
    return Logits(network, processor_of(where))


def _is_clip(where: str) -> bool:
    config = Path(where) / "config.json"
    if not config.is_file():
        return False
    told: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    return bool(told.get("model_type") == "clip")


def clip_classifier(where: str, names: Sequence[str]) -> ZeroShot:
    """Zero-shot CLIP from a transformers folder or the Hub, by the names of the classes.

    Raises:
        ValueError: If the model cannot be loaded whole, or has no tokenizer.
    """
    from transformers import AutoTokenizer, CLIPModel

    clip = whole(CLIPModel, where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} has no tokenizer: {' '.join(str(error).split())}") from error
    return zero_shot(clip, tokenizer, names, processor=processor_of(where))


def processor_of(where: str) -> Any:
    """The image processor of a transformers folder or Hub id; None if it has none.

    Raises:
        ValueError: If there is one and it cannot be used.
    """
    from transformers import AutoImageProcessor
    from transformers.utils import cached_file

    path = cached_file(
        where,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        return AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"cannot use the image processor of {where}: {told}") from error
