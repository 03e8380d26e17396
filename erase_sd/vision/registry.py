"""The table of methods: names, modules, papers."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # names and papers are told without loading torch
    from torch import nn

    from erase_sd.vision.cache import Run
    from erase_sd.vision.task import Task

Kind = Literal["closed-form", "gradient", "retraining", "trivial"]
DEFAULT = "rayleigh"
_UNLINK = "Unlearn in a Blink (OpenReview KnDkteVLTn)"


@dataclass(frozen=True)
class VisionMethod:
    """One way to unlearn.

    Attributes:
        where: `module:function` under `erase_sd.vision.methods`; the function takes `(model, task,
            options, run)`, and the annotation of `options` is the frozen dataclass that has them
            all.
        kind: What it does.
        summary: One line for people.
        source: Paper.
        retained: Whether it reads retained samples ("samples"), their moments, which a cache
            replaces ("moments"), or nothing of them ("nothing").
    """

    where: str
    kind: Kind
    summary: str
    source: str
    retained: Literal["nothing", "moments", "samples"]

    @property
    def function(self) -> Callable[[nn.Module, Task, Any, Run], nn.Module]:
        """The function."""
        module, name = self.where.split(":")
        found: Callable[[nn.Module, Task, Any, Run], nn.Module] = getattr(
            importlib.import_module(f"erase_sd.vision.methods.{module}"), name
        )
        return found

    @property
    def options_class(self) -> type:
        """The dataclass of its options."""
        found: type = typing.get_type_hints(self.function)["options"]
        return found

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of its options; None is chosen automatically."""
        return asdict(self.options_class())


def _entry(
    where: str,
    kind: Kind,
    summary: str,
    source: str,
    retained: Literal["nothing", "moments", "samples"],
) -> VisionMethod:
    return VisionMethod(where, kind, summary, source, retained)


METHODS: dict[str, VisionMethod] = {
    "rayleigh": _entry(
        "closed_form:rayleigh",
        "closed-form",
        "generalized Rayleigh quotient of the classifier's features, consistent form",
        f"{_UNLINK}, Eq. 12-15, corrected",
        "moments",
    ),
    "unlink": _entry(
        "closed_form:unlink",
        "closed-form",
        "the forget features' top directions projected out of the classifier",
        _UNLINK,
        "nothing",
    ),
    "unlink-below": _entry(
        "closed_form:unlink_below",
        "closed-form",
        "their weakest directions in the middle layers, for single samples",
        _UNLINK,
        "nothing",
    ),
    "affine": _entry(
        "closed_form:affine",
        "closed-form",
        "shift along the forget features' direction from the retained mean",
        "this project",
        "moments",
    ),
    "two-sided": _entry(
        "two_sided:two_sided",
        "closed-form",
        "every layer sends the forgotten where its second guess lives",
        "this project",
        "samples",
    ),
    "gf": _entry(
        "gf:gf",
        "closed-form",
        "importance-weighted projections of every layer, the best of a grid",
        "Deep Unlearning (arXiv 2312.00761)",
        "samples",
    ),
    "pgu": _entry(
        "pgu:pgu",
        "gradient",
        "gradient steps projected off the retained core gradient space",
        "arXiv 2312.04095",
        "moments",
    ),
    "depoison": _entry(
        "pgu:depoison",
        "gradient",
        "PGU for wrong labels: doubt the label, recombine the last layer",
        "arXiv 2312.04095",
        "moments",
    ),
    "ga": _entry(
        "relabel:gradient_ascent",
        "gradient",
        "gradient ascent on forget samples",
        "arXiv 2109.13398",
        "nothing",
    ),
    "ft": _entry(
        "relabel:finetune",
        "gradient",
        "fine-tuning on retained samples",
        "arXiv 1911.04933",
        "samples",
    ),
    "rl": _entry(
        "relabel:random_label",
        "gradient",
        "random labels for forget samples",
        "arXiv 1911.04933",
        "samples",
    ),
    "salun": _entry(
        "relabel:salun",
        "gradient",
        "random labels on the salient half of the weights",
        "arXiv 2310.12508",
        "samples",
    ),
    "l1": _entry(
        "relabel:l1_sparse",
        "gradient",
        "fine-tuning with a falling ℓ1 penalty",
        "arXiv 2304.04934",
        "samples",
    ),
    "iu": _entry(
        "influence:influence",
        "gradient",
        "influence function by WoodFisher's recursion",
        "arXiv 2103.03279",
        "samples",
    ),
    "ntk": _entry(
        "ntk:ntk",
        "gradient",
        "difference of two linearised models, its scale by line search",
        "arXiv 2003.02960",
        "samples",
    ),
    "first-order": _entry(
        "influence:first_order", "gradient", "one gradient step back", "arXiv 2108.11577", "nothing"
    ),
    "second-order": _entry(
        "influence:second_order",
        "gradient",
        "one Newton step back, by LiSSA",
        "arXiv 2108.11577",
        "samples",
    ),
    "be": _entry(
        "boundary:boundary_expanding",
        "gradient",
        "one more class that takes the forget samples",
        "arXiv 2303.11570",
        "nothing",
    ),
    "bs": _entry(
        "boundary:boundary_shrink",
        "gradient",
        "forget samples take the nearest other class",
        "arXiv 2303.11570",
        "nothing",
    ),
    "ssd": _entry(
        "dampen:ssd",
        "gradient",
        "dampen weights that matter more to forget samples",
        "arXiv 2308.07707",
        "samples",
    ),
    "jit": _entry(
        "dampen:jit",
        "gradient",
        "smooth the function around forget samples",
        "arXiv 2402.01401",
        "nothing",
    ),
    "scrub": _entry(
        "distil:scrub",
        "gradient",
        "away from the original on forget samples, towards it on the rest",
        "arXiv 2302.09880",
        "samples",
    ),
    "eu-k": _entry(
        "retrain:eu_k",
        "retraining",
        "the last k layers trained anew",
        "arXiv 2201.06640",
        "samples",
    ),
    "retrain": _entry(
        "retrain:retrain",
        "retraining",
        "training anew on what is retained: the reference",
        "-",
        "samples",
    ),
    "mask": _entry(
        "closed_form:mask",
        "trivial",
        "the forgotten classes' logits hidden: the trivial baseline",
        "-",
        "nothing",
    ),
}
