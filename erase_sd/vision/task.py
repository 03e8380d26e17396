"""What is to be unlearned: which samples of which data, and what is left to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erase_sd.vision.data import Data
from erase_sd.vision.samples import Samples

SPECIFICATION = "class:…, class:…#COUNT, subclass:…, random:… or index:…"


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
        validation: Unseen samples that methods may look at to know when to stop; None for whole
            classes.
        corrected: `(n,)` true labels of the forget samples, where they were wrong and are known.
    """

    forget: Samples
    retain: Samples
    test: Samples
    test_forget: Samples
    classes: tuple[int, ...]
    outputs: int
    name: str
    validation: Samples | None = None
    corrected: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.forget):
            raise ValueError(f"{self.name}: there is nothing to forget")
        if not len(self.retain):
            raise ValueError(
                f"{self.name}: nothing is left to retain; to forget everything, train anew"
            )
        for part in (self.forget, self.retain, self.test, self.test_forget):
            if len(part) and not 0 <= int(part.y.min()) <= int(part.y.max()) < self.outputs:
                raise ValueError(
                    f"expected labels in 0..{self.outputs - 1}, got up to {int(part.y.max())}"
                )
        if self.corrected is not None and len(self.corrected) != len(self.forget):
            raise ValueError(
                f"expected {len(self.forget)} corrected labels, got {len(self.corrected)}"
            )

    def shown(self, forget: Samples) -> Task:
        """The same task with other samples in the place of those to be forgotten."""
        return replace(self, forget=forget, corrected=None)


def make_task(data: Data, forget: str, *, seed: int = 0) -> Task:
    """Split data for a forget specification.

    Args:
        data: Training and test samples.
        forget: "class:3" or "class:cat,dog" (whole classes), "class:0#500" (so many of its training
            samples; the class stays), "subclass:lion" (samples of a finer noun; the class stays),
            "random:0.1" or "random:50" (that share or number of all training samples),
            "index:1,5,7".
        seed: Of the random choice.

    Raises:
        ValueError: On anything else, naming what there is.

    >>> from erase_sd.vision.data import load_data
    >>> task = make_task(load_data("digits"), "class:3")
    >>> task.classes, int(task.forget.y.unique())
    ((3,), 3)
    """
    kind, _, what = forget.partition(":")
    what, _, few = what.partition("#")
    words = [w.strip() for w in what.split(",") if w.strip()]
    if not words or (few and kind != "class"):
        raise ValueError(f"expected {SPECIFICATION}, got {forget!r}")
    train, test = Samples(data.train_x, data.train_y), Samples(data.test_x, data.test_y)
    gone = torch.zeros(len(train), dtype=torch.bool)
    gone_test = torch.zeros(len(test), dtype=torch.bool)
    classes: tuple[int, ...] = ()
    if kind == "class":
        numbers = torch.tensor(sorted({_class(data, w) for w in words}))
        gone, gone_test = (torch.isin(part.y, numbers) for part in (train, test))
        if few:
            gone = _some(gone, few, seed)
            gone_test[:] = False
        else:
            classes = tuple(numbers.tolist())
    elif kind == "subclass":
        gone, gone_test = _finer(data, words)
    elif kind == "random":
        gone[_drawn(words[0], len(train), seed)] = True
    elif kind == "index":
        try:
            gone[torch.tensor([int(w) for w in words])] = True
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"expected indices below {len(train)} after index:, got {what!r}"
            ) from error
    else:
        raise ValueError(f"expected {SPECIFICATION}, got {forget!r}")
    held = None
    if not classes:  # every fifth unseen sample tells when to stop, and is no test sample then
        fifth = torch.arange(len(test)) % 5 == 0
        held, keep = test[fifth & ~gone_test], ~fifth
        test, gone_test = test[keep], gone_test[keep]
    parts = (train[gone], train[~gone], test[~gone_test], test[gone_test])
    return Task(*parts, classes, len(data.classes), forget, held)


def _class(data: Data, word: str) -> int:
    if word in data.classes:
        return data.classes.index(word)
    if word.isdigit() and int(word) < len(data.classes):
        return int(word)
    raise ValueError(f"no class {word!r} in {data.name}; there are {', '.join(data.classes)}")


def _some(mask: Tensor, count: str, seed: int) -> Tensor:
    """A number of those that a mask names."""
    there = torch.nonzero(mask)[:, 0]
    if not count.isdigit() or not 0 < int(count) <= len(there):
        raise ValueError(f"expected a number of samples up to {len(there)} after #, got {count!r}")
    order = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))
    few = torch.zeros_like(mask)
    few[there[order[: int(count)]]] = True
    return few


def _finer(data: Data, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which training and test samples have one of these finer names."""
    if data.train_fine is None or data.test_fine is None:
        raise ValueError(f"{data.name} has no finer names than its classes")
    for word in words:
        if word not in data.train_fine:
            near = ", ".join(sorted(set(data.train_fine))[:12])
            raise ValueError(f"no {word!r} in {data.name}; there are {near}, …")
    gone = torch.tensor([f in words for f in data.train_fine])
    return gone, torch.tensor([f in words for f in data.test_fine])


def _drawn(word: str, total: int, seed: int) -> Tensor:
    """A random share or number of all."""
    try:
        amount = float(word)
    except ValueError as error:
        raise ValueError(f"expected a share or a number after random:, got {word!r}") from error
    count = round(amount * total) if amount < 1 else int(amount)
    if not 0 < count < total:
        raise ValueError(f"expected between 1 and {total - 1} samples to forget, got {count}")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
