"""What was forgotten and what it cost.

UA, RA, TA, MIA, the gap to retraining, and whether it was only hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from erase_sd.vision.layers import layers, watching
from erase_sd.vision.samples import Pictures, Samples
from erase_sd.vision.task import Task
from erase_sd.vision.train import logits

KEYS = ("UA", "RA", "TA", "MIA")


def membership(inside: np.ndarray, outside: np.ndarray, forget: np.ndarray) -> float:
    """MIA: per cent of forget samples that an attack takes for non-members; NaN without any.

    An SVC (C = 3, rbf, gamma "auto") on one feature, the probability of the true label.

    Args:
        inside: `(n,)` of retained samples, the members.
        outside: `(n,)` of test samples, the non-members.
        forget: `(m,)` of forget samples.

    >>> import numpy as np
    >>> membership(np.full(9, 1.0), np.full(9, 0.2), np.array([0.1, 0.9]))
    50.0
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
            raise ValueError(
                "the model's outputs are NaN: the method diverged; a smaller learning rate may help"
            )
        hits = (out.argmax(1) == part.y).float()
        right[name] = 100 * float(hits.mean()) if len(part) else math.nan
        sure[name] = out.softmax(1).gather(1, part.y[:, None])[:, 0].numpy()
    members = sure["retain"]
    if len(task.test) < len(members):  # as many members as non-members
        generator = torch.Generator().manual_seed(seed)
        members = members[
            torch.randperm(len(members), generator=generator)[: len(task.test)].numpy()
        ]
    return {
        "UA": 100 - right["forget"],
        "RA": right["retain"],
        "TA": right["test"],
        "MIA": membership(members, sure["test"], sure["forget"]),
    }


def average_gap(numbers: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Mean absolute difference to retraining over UA, RA, TA and MIA.

    >>> same = {"UA": 100, "RA": 100, "TA": 97, "MIA": 100}
    >>> average_gap(same | {"UA": 90, "TA": 95}, same)
    3.0
    """
    return float(np.mean([abs(numbers[k] - reference[k]) for k in KEYS]))


@torch.no_grad()
def penultimate(model: nn.Module, x: Tensor | Pictures) -> Tensor:
    """What the layer that runs last reads, `(n, d)`."""
    rows: list[Tensor] = []
    last = layers(model, "last", x)
    with watching(last, lambda layer, seen: rows.append(seen.float().cpu().flatten(1))):
        logits(model, x)
    return torch.cat(rows)


def relearn(model: nn.Module, task: Task, *, shots: int = 1, draw: int = 0) -> float:
    """Test recall in per cent of the forgotten class after a linear classifier is fitted anew.

    UA and its kin cannot tell "unlearned" from "hidden": this can. The classifier sees what the
    last layer reads of up to 2,000 retained samples and of `shots` samples of each forgotten class,
    these weighted as much as a class. NaN if no class is forgotten or no test sample is there.

    Args:
        model: The model.
        task: The task.
        shots: Forget samples of each class.
        draw: Which of them: those that follow the first `draw`.
    """
    return relearned(model, task, [(shots, draw)])[0]


def relearned(model: nn.Module, task: Task, plan: Sequence[tuple[int, int]]) -> list[float]:
    """`relearn` for several numbers of shots and draws; features are taken once."""
    from sklearn.linear_model import LogisticRegression

    if not task.classes or not len(task.test_forget):
        return [math.nan] * len(plan)
    kept = task.retain.sample(2000)
    base, seen = (penultimate(model, part.x).double() for part in (kept, task.test_forget))
    found = []
    for shots, draw in plan:
        places = [torch.nonzero(task.forget.y == c)[draw : draw + shots, 0] for c in task.classes]
        few = task.forget[torch.cat(places)]
        x = torch.cat([base, penultimate(model, few.x).double()])
        centre, scale = x.mean(0), x.std(0).clamp(min=1e-6)
        fitted = LogisticRegression(max_iter=5000, tol=1e-3, class_weight="balanced")
        fitted.fit(((x - centre) / scale).numpy(), torch.cat([kept.y, few.y]).numpy())
        right = fitted.predict(((seen - centre) / scale).numpy()) == task.test_forget.y.numpy()
        found.append(100 * float(right.mean()))
    return found


def without_rows(out: Tensor, classes: Sequence[int]) -> Tensor:
    """Logits `(n, c)` with forgotten classes' rows dropped.

    As PGU does before it measures class removal.
    """
    return out.index_fill(1, torch.tensor(list(classes), dtype=torch.long), -torch.inf)


def confusion(model: nn.Module, samples: Samples, outputs: int) -> np.ndarray:
    """Share in per cent of samples taken for each class, `(outputs,)`."""
    taken = logits(model, samples.x).argmax(1)
    return 100 * torch.bincount(taken, minlength=outputs).double().numpy() / max(1, len(samples))


def log_entropy(model: nn.Module, samples: Samples) -> np.ndarray:
    """Natural logarithm of the prediction's entropy for each sample, `(n,)`.

    PGU compares its distribution.
    """
    p = logits(model, samples.x).double().softmax(1)
    entropy = -(p * p.clamp(min=1e-300).log()).sum(1)
    return entropy.clamp(min=1e-12).log().numpy()


@dataclass(frozen=True, eq=False)
class Roc:
    """A curve of an attack.

    Attributes:
        false: `(n,)` false positive rates, ascending.
        true: `(n,)` true positive rates.
        auc: Area under it.
    """

    false: np.ndarray
    true: np.ndarray
    auc: float


def roc(scores: np.ndarray, members: np.ndarray) -> Roc:
    """The ROC curve of an attack's scores.

    Args:
        scores: `(n,)`; higher says "member".
        members: `(n,)` ones and zeros.

    >>> import numpy as np
    >>> roc(np.array([0.9, 0.8, 0.3]), np.array([1, 0, 0])).auc
    1.0
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _thresholds = roc_curve(members, scores)
    return Roc(false, true, float(roc_auc_score(members, scores)))


class ShadowAttack:
    """PGU's membership attack: trees on [softmax, one-hot label] of shadow models' answers.

    Class 1 are answers of models trained on everything, class 0 of models retrained without the
    samples. Of the models of each kind four fifths train the trees, a tenth picks among them by F1,
    and a tenth stays for the curve (40, 5 and 5 of 50). The paper takes XGBoost; here it is
    scikit-learn's gradient boosting.
    """

    def __init__(
        self,
        seen: Sequence[nn.Module],
        unseen: Sequence[nn.Module],
        samples: Samples,
        *,
        seed: int = 0,
    ) -> None:
        from sklearn.ensemble import GradientBoostingClassifier
        from sklearn.metrics import f1_score

        if min(len(seen), len(unseen)) < 3:
            raise ValueError(
                f"expected at least 3 shadow models of each kind, got {len(seen)} and {len(unseen)}"
            )
        self.samples = samples
        parts = [_thirds(models) for models in (seen, unseen)]
        train, check = (self._set(parts[0][i], parts[1][i]) for i in (0, 1))
        self.held_seen, self.held_unseen = parts[0][2], parts[1][2]
        best: tuple[float, Any] | None = None
        for depth in (1, 2, 3):
            trees = GradientBoostingClassifier(max_depth=depth, n_estimators=50, random_state=seed)
            trees.fit(*train)
            score = float(f1_score(check[1], trees.predict(check[0])))
            if best is None or score > best[0]:
                best = score, trees
        assert best is not None
        self.trees = best[1]

    def _features(self, model: nn.Module) -> np.ndarray:
        p = logits(model, self.samples.x).softmax(1)
        if p.shape[1] <= int(self.samples.y.max()):
            raise ValueError("the shadow models have fewer classes than the labels")
        label = torch.nn.functional.one_hot(self.samples.y, p.shape[1])
        return torch.cat([p, label], 1).numpy()

    def _set(
        self, seen: Sequence[nn.Module], unseen: Sequence[nn.Module]
    ) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.samples)
        x = np.concatenate([self._features(m) for m in [*seen, *unseen]])
        return x, np.r_[np.ones(len(seen) * count), np.zeros(len(unseen) * count)]

    def roc(self, models: Sequence[nn.Module]) -> Roc:
        """How well the attack tells these models' answers from those of retrained models."""
        x, y = self._set(models, self.held_unseen)
        return roc(self.trees.predict_proba(x)[:, 1], y)


def _thirds(models: Sequence[nn.Module]) -> tuple[Sequence[nn.Module], ...]:
    """Models that train the attack, choose it, and measure it: 8 : 1 : 1, at least one each."""
    held = max(1, len(models) // 10)
    return models[: -2 * held], models[-2 * held : -held], models[-held:]
