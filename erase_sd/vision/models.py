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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from erase_sd.models.files import PROVENANCE, atomic_path
from erase_sd.models.tensor_files import write_tensors
from erase_sd.vision.data import Data
from erase_sd.vision.networks import ARCHITECTURES, build
from erase_sd.vision.pretrained import Logits, ZeroShot, classifier, clip_classifier
from erase_sd.vision.samples import Samples
from erase_sd.vision.train import Loop, Recipe, train

# Models that other rooms hold: name to `module:function`; `NAME:FILE.safetensors` takes weights
# from a file.
EMBEDDED = {"emoji-clip": "erase_sd.vision.embedded:emoji_clip"}


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
        classes: Names of the classes, or their number where names do not matter. A transformers
            classifier may have more of them, if it has these names: `Data.numbered_as` then gives
            the data its numbers.
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
        return clip_classifier(file, classes)
    try:
        model = classifier(where)
    except ValueError as error:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(
            f"no model {where!r}: expected an architecture ({known}) with :FILE.safetensors, or a "
            f"transformers folder or Hub id; got {error}"
        ) from error
    own = model.network.config.num_labels
    if own != count and (isinstance(classes, int) or not model.knows(classes)):
        raise ValueError(
            f"{where} has {own} classes, the data {count}; data with fewer of them needs the names "
            f"that the model gives them"
        )
    return model


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
    zero-shot CLIP included, the folder that transformers reads, with its image processor and with
    `about` in `erasure.json` (the embedded CLIP also a safetensors file, if the path ends so).

    Raises:
        ValueError: If the model is no weights alone, as a mask is.
    """
    with atomic_path(path, force=force) as draft:
        write_weights(model, draft, about, suffix=path.suffix)


def write_weights(model: nn.Module, draft: Path, about: dict[str, Any], *, suffix: str) -> None:
    """The same to a draft of what will have a path with this suffix."""
    if hasattr(model, "gone"):
        raise ValueError("mask changes no weight: there is nothing to write")
    if isinstance(model, Logits) or (isinstance(model, ZeroShot) and suffix != ".safetensors"):
        model.save(draft)
        told = json.dumps(about, indent=1, sort_keys=True) + "\n"
        (draft / PROVENANCE).write_text(told, encoding="utf-8")
    else:
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        write_tensors(draft, state, {"erase-sd": json.dumps(about, sort_keys=True)})
