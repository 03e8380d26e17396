"""Trained rivals: methods that unlearn by gradient steps, as their papers have them.

They are here to be compared with. Each stands in the file named for it, with its options; they
share one loop, one way to resume and one kind of output, a plain checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from erase_sd._lazy import resolve
from erase_sd.algebra.options import make

if TYPE_CHECKING:  # names and papers are told without loading torch
    from erase_sd.training.bench import Bench
    from erase_sd.training.lesson import Lesson, Options

Trainer = Literal["esd-x", "esd-u", "fmn", "salun", "leco"]
TRAINERS: tuple[Trainer, ...] = get_args(Trainer)


@dataclass(frozen=True)
class TrainedMethod:
    """One way to unlearn by training.

    Attributes:
        where: `module:function` under `erase_sd.training.methods`; the function takes `(bench,
            options)`, and the annotation of `options` is the frozen dataclass that has them all.
        summary: One line for people.
        source: Paper or repository.
        reads: What it reads besides the forget prompts: "retain" prompts, a prompt "toward" which
            the concept goes, "pictures" of the concept.
    """

    where: str
    summary: str
    source: str
    reads: frozenset[str] = frozenset()

    @property
    def function(self) -> Callable[[Bench, Any], Lesson]:
        """The function."""
        found: Callable[[Bench, Any], Lesson] = resolve(f"erase_sd.training.methods.{self.where}")
        return found

    @property
    def options_class(self) -> type[Options]:
        """The dataclass of its options."""
        found: type[Options] = get_type_hints(self.function)["options"]
        return found

    def make_options(self, given: Mapping[str, Any]) -> Options:
        """Its options from names and values, which may be text.

        Raises:
            ValueError: On an unknown name or a bad value.
        """
        return make(self.options_class, given, owner=self.where.partition(":")[0])

    def described(self) -> dict[str, Any]:
        """Names and defaults of its options."""
        return asdict(self.make_options({}))


METHODS: dict[Trainer, TrainedMethod] = {
    "esd-x": TrainedMethod(
        "esd:esd_x", "cross-attention trained away from the concept's own guidance",
        "ESD, arXiv 2303.07345",
    ),
    "esd-u": TrainedMethod(
        "esd:esd_u", "everything but cross-attention trained away from the concept's own guidance",
        "ESD, arXiv 2303.07345",
    ),
    "fmn": TrainedMethod(
        "fmn:fmn", "attention to the concept's tokens trained to nothing",
        "Forget-Me-Not, arXiv 2303.17591", frozenset(("pictures",)),
    ),
    "salun": TrainedMethod(
        "salun:salun", "the salient half of the weights trained to draw another prompt's picture",
        "SalUn, arXiv 2310.12508", frozenset(("pictures", "retain", "toward")),
    ),
    "leco": TrainedMethod(
        "leco:leco", "a LoRA of all attention trained away from the concept's own guidance",
        "LECO, github.com/p1atdev/LECO", frozenset(("toward",)),
    ),
}  # fmt: skip
