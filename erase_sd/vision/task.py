"""What is to be unlearned: which samples of which data, and what is left to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from erase_sd.vision.data import Data


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs `(n, …)` float32 and labels `(n,)` int64."""

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"expected as many labels as inputs, got {len(self.x)} inputs and {len(self.y)} labels")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Tensor) -> Samples:
        return Samples(self.x[index], self.y[index])

    def sample(self, count: int, seed: int = 0) -> Samples:
        """At most `count` of them, without replacement."""
        if count >= len(self):
            return self
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]]


@dataclass(frozen=True, eq=False)
class Task:
    """One unlearning problem.

    Attributes:
        forget: Training samples to forget.
        retain: Training samples to keep.
        test: Test samples, without forgotten classes.
        test_forget: Test samples of what is forgotten; empty for instance-wise forgetting.
        classes: Forgotten classes; empty unless whole classes go.
        outputs: Number of classes of the model.
        name: "class:3", "random:0.1", ….
        validation: Unseen samples that methods may look at to know when to stop; None for whole classes.
    """

    forget: Samples
    retain: Samples
    test: Samples
    test_forget: Samples
    classes: tuple[int, ...]
    outputs: int
    name: str
    validation: Samples | None = None

    def __post_init__(self) -> None:
        if not len(self.forget):
            raise ValueError(f"{self.name}: there is nothing to forget")
        if not len(self.retain):
            raise ValueError(f"{self.name}: nothing is left to retain; to forget everything, train anew")
        for part in (self.forget, self.retain, self.test, self.test_forget):
            if len(part) and not 0 <= int(part.y.min()) <= int(part.y.max()) < self.outputs:
                raise ValueError(f"expected labels in 0..{self.outputs - 1}, got up to {int(part.y.max())}")


def make_task(data: Data, forget: str, *, seed: int = 0) -> Task:
    """Split data for a forget specification.

    Args:
        data: Training and test samples.
        forget: "class:3" or "class:cat,dog" (whole classes), "subclass:lion" (samples of a finer noun; the class
            stays), "random:0.1" or "random:50" (that share or number of all training samples), "index:1,5,7".
        seed: Of the random choice.

    Raises:
        ValueError: On anything else, naming what there is.
    """
    kind, _, what = forget.partition(":")
    words = [w.strip() for w in what.split(",") if w.strip()]
    if not words:
        raise ValueError(f"expected class:…, subclass:…, random:… or index:…, got {forget!r}")
    train, test = Samples(data.train_x, data.train_y), Samples(data.test_x, data.test_y)
    gone = torch.zeros(len(train), dtype=torch.bool)
    gone_test = torch.zeros(len(test), dtype=torch.bool)
    classes: tuple[int, ...] = ()
    if kind == "class":
        classes = tuple(sorted({_class(data, w) for w in words}))
        gone, gone_test = (torch.isin(part.y, torch.tensor(classes)) for part in (train, test))
    elif kind == "subclass":
        if data.train_fine is None or data.test_fine is None:
            raise ValueError(f"{data.name} has no finer names than its classes")
        for word in words:
            if word not in data.train_fine:
                near = ", ".join(sorted(set(data.train_fine))[:12])
                raise ValueError(f"no {word!r} in {data.name}; there are {near}, …")
        gone = torch.tensor([f in words for f in data.train_fine])
        gone_test = torch.tensor([f in words for f in data.test_fine])
    elif kind == "random":
        try:
            amount = float(words[0])
        except ValueError as error:
            raise ValueError(f"expected a share or a number after random:, got {words[0]!r}") from error
        count = round(amount * len(train)) if amount < 1 else int(amount)
        if not 0 < count < len(train):
            raise ValueError(f"expected between 1 and {len(train) - 1} samples to forget, got {count}")
        gone[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]] = True
    elif kind == "index":
        try:
            gone[torch.tensor([int(w) for w in words])] = True
        except (ValueError, IndexError) as error:
            raise ValueError(f"expected indices below {len(train)} after index:, got {what!r}") from error
    else:
        raise ValueError(f"expected class:…, subclass:…, random:… or index:…, got {forget!r}")
    held = None
    if not classes:  # every fifth unseen sample tells when to stop, and is no test sample then
        fifth = torch.arange(len(test)) % 5 == 0
        held, keep = test[fifth & ~gone_test], ~fifth
        test, gone_test = test[keep], gone_test[keep]
    outputs = len(data.classes)
    parts = (train[gone], train[~gone], test[~gone_test], test[gone_test])
    return Task(*parts, classes, outputs, f"{kind}:{what}", held)


def _class(data: Data, word: str) -> int:
    if word in data.classes:
        return data.classes.index(word)
    if word.isdigit() and int(word) < len(data.classes):
        return int(word)
    raise ValueError(f"no class {word!r} in {data.name}; there are {', '.join(data.classes)}")
