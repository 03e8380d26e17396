"""Classifiers: the small networks of the papers, transformers' models as logits, and weights in safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from erase_sd.vision.data import Data


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut: padded (option A) or projected (option B)."""

    def __init__(self, inner: int, outer: int, stride: int, *, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.pad = (outer - inner) // 2 if option == "A" and stride > 1 else 0
        self.shortcut = nn.Sequential()
        if option == "B" and (stride > 1 or inner != outer):
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, c, h, w)` to `(n, c', h', w')`."""
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else self.shortcut(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 images; names as in akamaster's public weights (option A) or torchvision's (option B)."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], classes: int, *, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inner = widths[0]
        self.stages = len(blocks)
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            strides = [1 if i == 1 else 2] + [1] * (count - 1)
            stage = [BasicBlock(inner if j == 0 else width, width, s, option=option) for j, s in enumerate(strides)]
            setattr(self, f"layer{i}", nn.Sequential(*stage))
            inner = width
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to logits `(n, classes)`."""
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.linear(x.mean((2, 3)))


def _vgg(plan: Sequence[int | str], classes: int, channels: int) -> nn.Module:
    parts: list[nn.Module] = []
    for step in plan:
        if step == "pool":
            parts.append(nn.MaxPool2d(2))
        else:
            parts += [nn.Conv2d(channels, int(step), 3, padding=1), nn.BatchNorm2d(int(step)), nn.ReLU()]
            channels = int(step)
    return nn.Sequential(nn.Sequential(*parts), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _all_cnn(classes: int, channels: int) -> nn.Module:
    """All Convolutional Net (arXiv 1412.6806): strides instead of pooling."""
    parts: list[nn.Module] = []
    for width, stride, kernel in (
        (96, 1, 3), (96, 1, 3), (96, 2, 3), (192, 1, 3), (192, 1, 3), (192, 2, 3), (192, 1, 3), (192, 1, 1),
    ):  # fmt: skip
        parts += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _mlp(classes: int, channels: int) -> nn.Module:
    """Two hidden layers, for 8 x 8 digits."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64 * channels, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes)
    )


def _cnn(classes: int, channels: int) -> nn.Module:
    """Two convolutions and two linear layers, for 8 x 8 digits."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")

ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet20": lambda n, c: CifarResNet((3, 3, 3), (16, 32, 64), n, option="A"),
    "resnet56": lambda n, c: CifarResNet((9, 9, 9), (16, 32, 64), n, option="A"),
    "resnet18": lambda n, c: CifarResNet((2, 2, 2, 2), (64, 128, 256, 512), n, option="B"),
    "vgg16-bn": lambda n, c: _vgg(_VGG16, n, c),
    "small-vgg": lambda n, c: _vgg((32, 32, "pool", 64, 64, "pool", 128, 128, "pool"), n, c),
    "all-cnn": _all_cnn,
}


class Logits(nn.Module):
    """A transformers image classifier (ViT, Swin, ConvNeXt, …) that returns plain logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, classes)`."""
        return self.network(pixel_values=x).logits


class ZeroShot(nn.Module):
    """CLIP's image tower with the embeddings of class names as a frozen classifier.

    Attributes:
        vision: The image tower.
        projection: To the shared space.
        names: `(classes, d)` unit text embeddings.
        scale: Logit scale.
    """

    names: Tensor
    scale: Tensor

    def __init__(self, clip: Any, names: Tensor) -> None:
        super().__init__()
        self.vision = clip.vision_model
        self.projection = clip.visual_projection
        self.register_buffer("names", F.normalize(names, dim=1))
        self.register_buffer("scale", clip.logit_scale.detach().exp().clamp(max=100))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 3, h, w)` to `(n, classes)`."""
        seen = F.normalize(self.projection(self.vision(pixel_values=x).pooler_output), dim=1)
        return self.scale * seen @ self.names.T


def zero_shot(
    clip: Any, tokenizer: Any, classes: Sequence[str], templates: Sequence[str] = ("a photo of {}",)
) -> ZeroShot:
    """A zero-shot classifier of a `CLIPModel`: the mean unit embedding of each class name in the templates."""
    with torch.no_grad():
        total: Tensor | None = None
        for template in templates:
            inputs = tokenizer([template.format(c) for c in classes], padding="max_length", return_tensors="pt")
            out = clip.text_projection(clip.text_model(inputs.input_ids).pooler_output)
            total = F.normalize(out, dim=1) if total is None else total + F.normalize(out, dim=1)
    assert total is not None
    return ZeroShot(clip, total).eval()


def emoji_clip() -> ZeroShot:
    """The embedded CLIP as a classifier of the embedded world's objects."""
    from erase_sd.emoji.models import load_clip
    from erase_sd.emoji.world import load_world, with_article

    clip, tokenizer = load_clip()
    return zero_shot(clip, tokenizer, [with_article(n) for n in load_world().names])


def build(name: str, classes: int, channels: int = 3, *, seed: int = 0) -> nn.Module:
    """A fresh network by name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name](classes, channels)


def trained(
    name: str, data: Data, *, seed: int = 0, epochs: int = 40, device: str = "cpu", desc: str = "training"
) -> nn.Module:
    """A fresh network of an architecture, trained on all of the data: the original that is to forget.

    Args:
        name: Of the architecture.
        data: Samples.
        seed: Of the initial weights and the order of samples.
        epochs: Passes over the training samples; SGD, one cycle up to 0.05, batches of 64.
        device: Where.
        desc: Label of the progress bar.
    """
    from erase_sd.vision.task import Samples
    from erase_sd.vision.train import cross_entropy, one_cycle, sgd

    model = build(name, len(data.classes), data.train_x.shape[1], seed=seed).to(device)
    whole = Samples(data.train_x, data.train_y)
    return sgd(model, whole, cross_entropy, epochs=epochs, lr=0.05, batch=64, seed=seed, schedule=one_cycle, desc=desc)


def load_model(where: str, classes: int, channels: int = 3) -> nn.Module:
    """Load a classifier.

    Args:
        where: `ARCHITECTURE:FILE.safetensors`, "emoji-clip" or `emoji-clip:FILE` (embedded, zero-shot), a transformers
            folder or Hub id of an image classifier, or an architecture's name for a fresh network.
        classes: Number of classes.
        channels: Of the input.

    Raises:
        ValueError: If it cannot be loaded or does not fit.
    """
    name, _, file = where.partition(":")
    if name == "emoji-clip":
        return load_weights(emoji_clip(), Path(file)) if file else emoji_clip()
    if name in ARCHITECTURES:
        model = build(name, classes, channels)
        return load_weights(model, Path(file)) if file else model
    from transformers import AutoModelForImageClassification

    try:
        network = AutoModelForImageClassification.from_pretrained(where, use_safetensors=True)
    except (OSError, ValueError) as error:
        told = f"no model {where!r}: an architecture ({', '.join(ARCHITECTURES)}) with :FILE.safetensors"
        raise ValueError(f"{told}, or a transformers folder or Hub id ({error})") from error
    if network.config.num_labels != classes:
        raise ValueError(f"{where} has {network.config.num_labels} classes, the data {classes}")
    return Logits(network)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a safetensors file into a model; `module.` before names, as DataParallel writes, is ignored.

    Raises:
        ValueError: If the file is unreadable or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file; pickles run code when they are loaded")
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
        raise ValueError(f"{path} does not fit this architecture: {wrong[0]} and {len(wrong) - 1} others differ")
    model.load_state_dict(state, strict=False)
    return model


def save_weights(model: nn.Module, path: Path, about: dict[str, Any], *, force: bool = False) -> None:
    """Write a model's state as safetensors (a transformers model: as its folder), with what it is in the metadata.

    Raises:
        ValueError: If there is nothing to write.
    """
    from safetensors.torch import save_file

    from erase_sd.models.files import atomic_path
    from erase_sd.vision.closed_form import Masked

    if isinstance(model, Masked):
        raise ValueError("mask changes no weight: there is nothing to write")
    if isinstance(model, Logits):  # as transformers keeps them, to be loaded by the same name
        with atomic_path(path, force=force) as draft:
            model.network.save_pretrained(draft)  # type: ignore[operator]
        return
    with atomic_path(path, force=force) as draft:
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(state, draft, metadata={"erase-sd": json.dumps(about, sort_keys=True)})
