"""Classifiers to unlearn from.

Networks with weights in safetensors, transformers' models as logits, zero-shot CLIP.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from erase_sd.models.files import atomic_path
from erase_sd.models.tensor_files import write_tensors
from erase_sd.vision.data import Data, Statistics
from erase_sd.vision.networks import ARCHITECTURES, build
from erase_sd.vision.samples import Samples
from erase_sd.vision.train import Loop, Recipe, train

# Models that other rooms hold: name to `module:function`; `NAME:FILE.safetensors` takes weights
# from a file.
EMBEDDED = {"emoji-clip": "erase_sd.vision.embedded:emoji_clip"}
TEMPLATES = ("a photo of a {}",)


class Logits(nn.Module):
    """A transformers image classifier (ViT, Swin, ConvNeXt, …) that returns plain logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, classes)`."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits

    def fresh(self) -> Logits:
        """The same architecture, its weights drawn anew by its own rules."""
        return Logits(type(self.network)(self.network.config))


class ZeroShot(nn.Module):
    """CLIP's image tower with the embeddings of class names as a frozen classifier.

    Attributes:
        vision: The image tower.
        projection: To the shared space.
        names: `(classes, d)` unit text embeddings.
        scale: Logit scale.
        whole: The CLIP model that the tower is part of, and its tokenizer: not modules of this one,
            since unlearning touches the image tower alone.
    """

    names: Tensor
    scale: Tensor

    def __init__(self, clip: Any, names: Tensor, tokenizer: Any = None) -> None:
        super().__init__()
        self.vision = clip.vision_model
        self.projection = clip.visual_projection
        self.register_buffer("names", F.normalize(names, dim=1))
        self.register_buffer("scale", clip.logit_scale.detach().exp().clamp(max=100))
        self.whole = (clip, tokenizer)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, classes)`."""
        seen = F.normalize(self.projection(self.vision(pixel_values=x).pooler_output), dim=1)
        return self.scale * seen @ self.names.T


def zero_shot(
    clip: Any, tokenizer: Any, classes: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> ZeroShot:
    """A zero-shot classifier of a `CLIPModel`.

    The mean unit embedding of each class name in the templates.
    """
    total = torch.zeros(len(classes), clip.config.projection_dim)
    with torch.no_grad():
        for template in templates:
            prompts = [template.format(c) for c in classes]
            inputs = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
            out = clip.text_projection(clip.text_model(inputs.input_ids).pooler_output)
            total += F.normalize(out, dim=1)
    return ZeroShot(clip, total, tokenizer).eval()


def trained(
    name: str,
    data: Data,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    loop: Loop | None = None,
) -> nn.Module:
    """A fresh network of an architecture, trained on all of the data.

    Args:
        name: Of the architecture.
        data: Samples.
        recipe: Of the training.
        seed: Of the initial weights and the order of samples.
        device: Where.
        loop: What else happens while it trains, such as a file to resume from.
    """
    model = build(name, len(data.classes), data.channels, seed=seed).to(device)
    whole = Samples(data.train_x, data.train_y)
    return train(model, whole, recipe or Recipe(), seed=seed, loop=loop)


def load_model(where: str, classes: Sequence[str] | int, channels: int = 3) -> nn.Module:
    """Load a classifier.

    Args:
        where: `ARCHITECTURE:FILE.safetensors`; an architecture's name for a fresh network;
            "emoji-clip" or `emoji-clip:FILE.safetensors`; `clip:FOLDER` for zero-shot CLIP on the
            names of the classes; a transformers folder or Hub id of an image classifier.
        classes: Names of the classes, or their number where names do not matter.
        channels: Of the input.

    Raises:
        ValueError: If it cannot be loaded whole, or does not fit: a weight that is missing is
            refused, never drawn.

    >>> load_model("mlp", 10, 1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    count = classes if isinstance(classes, int) else len(classes)
    name, _, file = where.partition(":")
    if name in EMBEDDED:
        module, function = EMBEDDED[name].split(":")
        made: nn.Module = getattr(importlib.import_module(module), function)()
        return load_weights(made, Path(file)) if file else made
    if name in ARCHITECTURES:
        model = build(name, count, channels)
        return load_weights(model, Path(file)) if file else model
    if name == "clip":
        if isinstance(classes, int):
            raise ValueError("zero-shot CLIP needs the names of the classes, got only their number")
        return _clip(file, classes)
    return _classifier(where, count)


def whole(kind: Any, where: str) -> Any:
    """A transformers model from a folder or the Hub, all of it, in safetensors, no remote code.

    Args:
        kind: An auto class or a model class.
        where: Folder or Hub id.

    Raises:
        ValueError: If a weight is missing or of another shape: transformers would draw it at
            random.
    """
    try:
        network, told = kind.from_pretrained(
            where, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"cannot load {where!r} as {kind.__name__}: {text}") from error
    lacking = [*told["missing_keys"], *(str(m[0]) for m in told["mismatched_keys"])]
    if lacking:
        raise ValueError(
            f"{where} lacks {len(lacking)} weights that {type(network).__name__} needs, such as "
            f"{sorted(lacking)[0]}; they would be random"
        )
    return network.eval()


def _classifier(where: str, count: int) -> Logits:
    from transformers import AutoModelForImageClassification

    try:
        network = whole(AutoModelForImageClassification, where)
    except ValueError as error:
        hint = f"; for zero-shot CLIP give clip:{where}" if _is_clip(where) else ""
        known = ", ".join(ARCHITECTURES)
        raise ValueError(
            f"no model {where!r}: an architecture ({known}) with :FILE.safetensors, or a "
            f"transformers folder or Hub id"
            f" of an image classifier{hint} ({error})"
        ) from error
    if network.config.num_labels != count:
        raise ValueError(f"{where} has {network.config.num_labels} classes, the data {count}")
    return Logits(network)


def _is_clip(where: str) -> bool:
    config = Path(where) / "config.json"
    if not config.is_file():
        return False
    told: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    return bool(told.get("model_type") == "clip")


def _clip(where: str, names: Sequence[str]) -> ZeroShot:
    from transformers import AutoTokenizer, CLIPModel

    clip = whole(CLIPModel, where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} has no tokenizer: {' '.join(str(error).split())}") from error
    return zero_shot(clip, tokenizer, names)


def expected(where: str) -> tuple[Statistics | None, int | None]:
    """Normalisation and side of the images that a transformers model expects.

    From its own preprocessor file.
    """
    folder = where.removeprefix("clip:")
    if where.partition(":")[0] in (ARCHITECTURES.keys() | EMBEDDED.keys()):
        return None, None
    from transformers.utils import cached_file

    path = cached_file(
        folder,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None, None
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    statistics = (
        (tuple(told["image_mean"]), tuple(told["image_std"])) if "image_mean" in told else None
    )
    size = told.get("crop_size") or told.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return statistics, size


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a safetensors file into a model; `module.` before names is ignored.

    Raises:
        ValueError: If the file is unreadable or does not fit.
    """
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is not a .safetensors file; pickles run code when they are loaded"
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")
    try:
        state = {k.removeprefix("module."): v for k, v in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    bad = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise ValueError(f"{path}: {bad[0]} holds NaN or infinite values")
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    wrong = sorted(set(own) ^ {k for k in state if not k.endswith("num_batches_tracked")})
    wrong += [k for k in own if k in state and state[k].shape != own[k].shape]
    if wrong:
        others = f" and {len(wrong) - 1} others differ"
        raise ValueError(f"{path} does not fit this architecture: {wrong[0]}{others}")
    model.load_state_dict(state, strict=False)
    return model


def save_weights(
    model: nn.Module, path: Path, about: dict[str, Any], *, force: bool = False
) -> None:
    """Write a model to be loaded again by `load_model`.

    A network becomes a safetensors file with `about` in its metadata; a transformers model,
    zero-shot CLIP included, the folder that transformers reads (CLIP also such a file, by the
    path's ending). A mask is no weights alone: ValueError.
    """
    with atomic_path(path, force=force) as draft:
        write_weights(model, draft, about, suffix=path.suffix)


def write_weights(model: nn.Module, draft: Path, about: dict[str, Any], *, suffix: str) -> None:
    """The same to a draft of what will have a path with this suffix."""
    if hasattr(model, "gone"):
        raise ValueError("mask changes no weight: there is nothing to write")
    if isinstance(model, Logits):
        model.network.save_pretrained(draft)
    elif isinstance(model, ZeroShot) and suffix != ".safetensors":
        clip, tokenizer = model.whole
        clip.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    else:
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        write_tensors(draft, state, {"erase-sd": json.dumps(about, sort_keys=True)})
