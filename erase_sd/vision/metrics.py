"""What was forgotten and what it cost: UA, RA, TA, MIA, the gap to retraining, and whether it was only hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from erase_sd.vision.layers import layers, watching
from erase_sd.vision.task import Samples, Task
from erase_sd.vision.train import logits

KEYS = ("UA", "RA", "TA", "MIA")


def membership(inside: np.ndarray, outside: np.ndarray, forget: np.ndarray) -> float:
    """MIA: per cent of forget samples that an attack takes for non-members; NaN without non-members.

    An SVC (C = 3, rbf, gamma "auto") on one feature, the probability of the true label.

    Args:
        inside: `(n,)` of retained samples, the members.
        outside: `(n,)` of test samples, the non-members.
        forget: `(m,)` of forget samples.
    """
    from sklearn.svm import SVC

    if not len(outside):
        return math.nan
    labels = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    attack = SVC(C=3, kernel="rbf", gamma="auto").fit(np.r_[inside, outside][:, None], labels)
    return 100 * float((attack.predict(forget[:, None]) == 0).mean())


def measure(model: nn.Module, task: Task, *, seed: int = 0) -> dict[str, float]:
    """UA, RA, TA and MIA in per cent; UA is 100 less the accuracy on forget samples.

    Raises:
        ValueError: If the model answers with NaN.
    """
    right: dict[str, float] = {}
    sure: dict[str, np.ndarray] = {}
    for name, part in (("forget", task.forget), ("retain", task.retain), ("test", task.test)):
        out = logits(model, part.x) if len(part) else torch.zeros(0, task.outputs)
        if torch.isnan(out).any():
            raise ValueError("the model's outputs are NaN: the method diverged; a smaller learning rate may help")
        right[name] = 100 * float((out.argmax(1) == part.y).float().mean()) if len(part) else math.nan
        sure[name] = out.softmax(1).gather(1, part.y[:, None])[:, 0].numpy()
    members = sure["retain"]
    if len(task.test) < len(members):  # as many members as non-members
        generator = torch.Generator().manual_seed(seed)
        members = members[torch.randperm(len(members), generator=generator)[: len(task.test)].numpy()]
    return {
        "UA": 100 - right["forget"],
        "RA": right["retain"],
        "TA": right["test"],
        "MIA": membership(members, sure["test"], sure["forget"]),
    }


def average_gap(numbers: dict[str, float], reference: dict[str, float]) -> float:
    """Mean absolute difference to retraining over UA, RA, TA and MIA."""
    return float(np.mean([abs(numbers[k] - reference[k]) for k in KEYS]))


@torch.no_grad()
def penultimate(model: nn.Module, x: Tensor) -> Tensor:
    """What the last layer reads, `(n, d)`."""
    rows: list[Tensor] = []
    with watching(layers(model, "last"), lambda layer, seen: rows.append(seen.float().cpu().flatten(1))):
        logits(model, x)
    return torch.cat(rows)


def relearn(model: nn.Module, task: Task, *, shots: int = 1, seed: int = 0) -> float:
    """Test recall in per cent of the forgotten class after a linear classifier is fitted anew with few forget samples.

    UA and its kin cannot tell "unlearned" from "hidden": this can. The classifier sees the penultimate features of up
    to 2,000 retained samples and `shots` samples of each forgotten class, these weighted as much as a class.
    NaN if no class is forgotten or no test sample is there.
    """
    from sklearn.linear_model import LogisticRegression

    if not task.classes or not len(task.test_forget):
        return math.nan
    few = torch.cat([torch.nonzero(task.forget.y == c)[:, 0][:shots] for c in task.classes])
    kept = task.retain.sample(2000, seed)
    x = torch.cat([penultimate(model, kept.x), penultimate(model, task.forget.x[few])]).double()
    centre, scale = x.mean(0), x.std(0).clamp(min=1e-6)
    y = torch.cat([kept.y, task.forget.y[few]]).numpy()
    fitted = LogisticRegression(max_iter=5000, tol=1e-3, class_weight="balanced").fit(((x - centre) / scale).numpy(), y)
    seen = ((penultimate(model, task.test_forget.x).double() - centre) / scale).numpy()
    return 100 * float((fitted.predict(seen) == task.test_forget.y.numpy()).mean())


def log_entropy(model: nn.Module, samples: Samples) -> np.ndarray:
    """Natural logarithm of the prediction's entropy for each sample, `(n,)`; PGU compares its distribution."""
    p = logits(model, samples.x).double().softmax(1)
    return (-(p * p.clamp(min=1e-300).log()).sum(1)).clamp(min=1e-12).log().numpy()


def shadow_auc(
    seen: Sequence[nn.Module], unseen: Sequence[nn.Module], model: nn.Module, samples: Samples, *, seed: int = 0
) -> float:
    """How well shadow models tell whether samples were trained on: the attack's mean score on `model`'s answers.

    Gradient-boosted trees on [softmax, one-hot label] learn to tell models that were trained on the samples (label 1)
    from models trained without them (0). Near 0 the model answers as one that never saw them.

    Args:
        seen: Models trained on everything.
        unseen: Models retrained without the samples.
        model: The model in question.
        samples: The forgotten samples.
        seed: Of the trees.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    def features(net: nn.Module) -> np.ndarray:
        p = logits(net, samples.x).softmax(1)
        if p.shape[1] <= int(samples.y.max()):
            raise ValueError("the shadow models have fewer classes than the labels")
        return torch.cat([p, torch.nn.functional.one_hot(samples.y, p.shape[1])], 1).numpy()

    x = np.concatenate([features(net) for net in [*seen, *unseen]])
    y = np.r_[np.ones(len(seen) * len(samples)), np.zeros(len(unseen) * len(samples))]
    attack = GradientBoostingClassifier(random_state=seed).fit(x, y)
    return float(attack.predict_proba(features(model))[:, 1].mean())


def roc_auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Area under the ROC curve of an attack's scores."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(members, scores))
