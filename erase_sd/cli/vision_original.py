"""What `erase-concept vision` starts from: the data, and the model that is to forget some of it."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from erase_sd.vision import Cache, Data


def original(args: Namespace) -> tuple[nn.Module | None, Data]:
    """The model and its data; no model where a dry run needs none.

    The data is prepared as the model expects, its classes named as the file says, and numbered as
    the model numbers them.
    """
    from erase_sd.vision import load_data, load_model
    from erase_sd.vision.pretrained import Logits, processor_of

    own = _is_own(args.model)
    processor = None if own else processor_of(args.model.removeprefix("clip:"))
    data = _named(load_data(args.data, size=args.size, processor=processor), args.classes_file)
    if own and args.dry_run:
        return None, data
    if args.train:
        return _trained(args, data), data
    model = load_model(args.model, data.classes, data.channels).to(args.device).eval()
    if not own and processor is None:
        print(
            f"note: {args.model} has no preprocessor_config.json; images are normalised as "
            f"{data.name}'s models expect",
            file=sys.stderr,
        )
    if isinstance(model, Logits) and model.knows(data.classes):
        data = data.numbered_as(model.labels)
    elif isinstance(model, Logits) and model.labels:
        first = f"{data.classes[0]!r} as {model.labels[0]!r}"
        print(
            f"note: {args.model} names its classes otherwise; they are taken in its order, {first}",
            file=sys.stderr,
        )
    return model, data


def _is_own(model: str) -> bool:
    """Whether a model is one of this package's architectures, and no transformers folder."""
    from erase_sd.vision.models import EMBEDDED
    from erase_sd.vision.networks import ARCHITECTURES

    return model.partition(":")[0] in (ARCHITECTURES.keys() | EMBEDDED.keys())


def _named(data: Data, file: Path | None) -> Data:
    """The data with its classes named as a file says."""
    if file is None:
        return data
    if not file.is_file():
        raise ValueError(f"no such file: {file}")
    names = tuple(n.strip() for n in file.read_text(encoding="utf-8").splitlines() if n.strip())
    if len(names) != len(data.classes):
        raise ValueError(f"expected {len(data.classes)} names in {file}, got {len(names)}")
    return replace(data, classes=names)


def _trained(args: Namespace, data: Data) -> nn.Module:
    """A fresh network, trained with the seed."""
    from erase_sd.vision.models import trained
    from erase_sd.vision.train import Loop, Recipe

    recipe = Recipe() if args.epochs is None else Recipe(epochs=args.epochs)
    loop = Loop(desc="training the original")
    return trained(args.model, data, recipe, seed=args.seed, device=args.device, loop=loop)


def cached(args: Namespace, model: nn.Module, data: Data) -> Cache | None:
    """The moments of the training data, made and written if there are none yet."""
    from erase_sd.vision import Cache, Samples

    if args.cache is None:
        return None
    if not args.cache.exists():
        Cache.of(model, Samples(data.train_x, data.train_y)).save(args.cache, model)
    return Cache.load(args.cache, model)


def check_model(args: Namespace) -> None:
    """What is wrong with the model or where it is to be written, before anything is loaded."""
    from erase_sd.vision.networks import ARCHITECTURES

    if args.model in ARCHITECTURES and not args.train:
        raise ValueError(
            f"{args.model} is untrained: give {args.model}:FILE.safetensors or --train"
        )
    kind = args.model.partition(":")[0]
    is_file = args.out is not None and args.out.suffix == ".safetensors"
    wanted = ""
    if args.out and kind in ARCHITECTURES and not is_file:
        wanted = "one file: expected --out FILE.safetensors"
    if is_file and not _is_own(args.model):
        wanted = "a folder: expected --out FOLDER"
    if wanted:
        raise ValueError(f"{args.model} is written as {wanted}, got {args.out}")
