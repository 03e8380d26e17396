"""A ResNet-20 trained here, for docs/measured/vision.md: all methods beside Retrain, relearning."""

from __future__ import annotations

from dataclasses import replace

from erase_sd.vision import load_data
from erase_sd.vision.samples import Samples
from erase_sd.vision.train import accuracy
from lab.vision_cases import Setting
from lab.vision_cifar import public
from lab.vision_parts import Study
from lab.vision_report import plot
from lab.vision_train import own, recipe_of

# As many retained samples as test samples: the attack is balanced.
SHARE = (0.05, 0.1)
MORE = (0.1, 0.1)  # for what relearning brings back, which differs from draw to draw
NOT_RUN = (
    "Left out of this run (`--no-retrain`). The trainings have a command of their own, which "
    "resumes: `python -m lab.vision_train --forget class:0 …`."
)


def own_network(study: Study) -> str:
    """Every method on a network whose Retrain is there, the original and Retrain by one recipe."""
    if not study.retrain:
        return NOT_RUN
    data = load_data(str(study.data / "cifar10.npz"))
    setting = own(study.work, data, SHARE)
    test = accuracy(setting.original(0), Samples(data.test_x, data.test_y))
    title = "CIFAR-10, ResNet-20 trained here, one class after another"
    told = study.table(
        title, "class-wise", setting, methods=study.rivals, classes=study.cifar, published=True
    )
    study.pictures["vision-cifar"] = plot(study.numbers[title], "CIFAR-10, ResNet-20 trained here")
    parts = [told, "![forgotten and kept](vision-cifar.png)\n", study.classes_of(title)]
    if study.random:
        brief = ("unlink", "rayleigh", "unlink-below", "ft", "rl", "salun", "ga", "bs", "ssd")
        title = "CIFAR-10, ResNet-20 trained here, a tenth of the samples"
        parts.append(study.table(title, "random", setting, methods=brief, published=True))
    told = f"Recipe of the original and of Retrain: {recipe_of('resnet20', data).told()}. "
    told += f"The original knows {test:.1f} % of the test images."
    return "\n".join([told, "", *parts])


def layers(study: Study) -> str:
    """One layer edited at a time."""
    if not study.retrain:
        return NOT_RUN
    setting = own(study.work, load_data(str(study.data / "cifar10.npz")), SHARE)
    title = "CIFAR-10, ResNet-20 trained here, layer by layer"
    return study.table(title, "layers", setting, published=True, classes=study.cifar[:1])


def frontier(study: Study) -> str:
    """What relearning brings back after edits of both sides, on more and more layers."""
    title = "CIFAR-10, the public ResNet-20, edits of both sides"
    if not study.retrain:
        data, model = public(study, study.images)
        shared = Setting(data, lambda seed: model, "cifar10", False, "resnet20 public")
        told = study.table(title, "frontier", shared, classes=study.cifar)
        return told + "\n" + study.goals(title, "two-sided, μ = 1")
    data = load_data(str(study.data / "cifar10.npz"))
    setting = replace(own(study.work, data, MORE), draws=10)
    title = "CIFAR-10, ResNet-20 trained here, edits of both sides"
    told = study.table(title, "frontier", setting, classes=study.cifar)
    return told + "\n" + study.goals(title, "two-sided, μ = 1")
