"""Metrics against references written without scikit-learn's estimators."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from erase_sd.vision import Samples, Task, build, measure, unlearn
from erase_sd.vision.metrics import (
    ShadowAttack,
    average_gap,
    confusion,
    log_entropy,
    membership,
    penultimate,
    relearn,
    roc,
    without_rows,
)
from erase_sd.vision.train import accuracy


def svc(x, y, C=3.0):
    """The dual of a soft-margin machine with the kernel exp(−(a − b)²), by a general solver.

    One feature.
    """
    K = np.exp(-((x[:, None] - x[None]) ** 2))
    Q = y[:, None] * y[None] * K
    found = minimize(
        lambda a: 0.5 * a @ Q @ a - a.sum(),
        np.full(len(x), 0.1),
        jac=lambda a: Q @ a - 1,
        method="SLSQP",
        bounds=[(0, C)] * len(x),
        constraints={"type": "eq", "fun": lambda a: a @ y, "jac": lambda a: y},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    a = found.x
    free = (a > 1e-4) & (a < C - 1e-4)
    offset = np.mean(y[free] - (a * y) @ K[:, free])
    return lambda z: (a * y) @ np.exp(-((x[:, None] - z[None]) ** 2)) + offset


def test_membership_is_the_support_vector_machine():
    rng = np.random.default_rng(0)
    inside, outside = rng.beta(8, 2, 30), rng.beta(2, 2, 30)
    forget = rng.uniform(0, 1, 40)
    decide = svc(np.r_[inside, outside], np.r_[np.ones(30), -np.ones(30)])
    sure = np.abs(decide(forget)) > 1e-3  # solvers may differ on the border itself
    assert sure.sum() > 35
    want = 100 * float((decide(forget[sure]) < 0).mean())
    assert 10 < want < 90
    assert membership(inside, outside, forget[sure]) == pytest.approx(want)
    assert np.isnan(membership(inside, outside[:0], forget))


def test_measure_takes_confidence_in_the_true_label():
    """A model that is sure of retained samples and wrong on forgotten ones.

    Members are told by their own label.
    """
    x = torch.eye(2).repeat(20, 1)
    y = torch.arange(2).repeat(20)
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-3.0, -3.0], [3.0, 3.0]]))  # says 1 whatever it sees
    whole = Samples(x, y)
    outside = Samples(-x, y)  # says 0 to these: wrong on label 1
    task = Task(whole[y == 0], whole[y == 1], outside[y == 1], whole[y == 0], (0,), 2, "class:0")
    assert measure(model, task) == {"UA": 100.0, "RA": 100.0, "TA": 0.0, "MIA": 100.0}


def test_gap():
    same = {"UA": 100, "RA": 100, "TA": 97, "MIA": 100}
    assert average_gap({"UA": 90, "RA": 100, "TA": 95, "MIA": 100}, same) == 3


def test_roc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(1)
    scores, members = rng.integers(0, 6, 40) / 5, rng.integers(0, 2, 40)  # with ties
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[members == 1] for b in scores[members == 0]]
    curve = roc(scores, members)
    assert curve.auc == pytest.approx(np.mean(pairs))
    area = np.sum(np.diff(curve.false) * (curve.true[1:] + curve.true[:-1]) / 2)
    assert area == pytest.approx(curve.auc)
    assert roc(-scores, members).auc == pytest.approx(1 - curve.auc)


def test_entropy_and_confusion():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Parameter(
                torch.tensor([[0.0, 0, -1e9, -1e9], [0.0, 0, 0, 0], [9.0, -1e9, -1e9, -1e9]])
            )

        def forward(self, x):
            return self.out[: len(x)]

    three = Samples(torch.zeros(3, 1), torch.tensor([0, 1, 2]))
    assert log_entropy(Fixed(), three)[:2] == pytest.approx(np.log([np.log(2), np.log(4)]))
    assert confusion(Fixed(), three, 4).tolist() == pytest.approx([100, 0, 0, 0])


def test_dropped_rows_are_never_chosen():
    assert without_rows(torch.tensor([[5.0, 1.0, 2.0]]), [0]).argmax(1).item() == 2


def test_shadow_attack_tells_models_that_saw_the_samples():
    """Networks that know the samples' labels by heart, and networks that never saw them."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 5), torch.randint(0, 3, (30,))

    class Answer(nn.Module):
        def __init__(self, knows, seed):
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.out = nn.Parameter(torch.randn(30, 3, generator=generator))
            with torch.no_grad():
                self.out[torch.arange(30), y] += 4.0 * knows

        def forward(self, x):
            return self.out

    samples = Samples(x, y)
    seen, unseen = ([Answer(k, 10 * i + k) for i in range(10)] for k in (1, 0))
    attack = ShadowAttack(seen, unseen, samples)
    assert len(attack.held_seen) == 1
    assert attack.roc([Answer(1, 999)]).auc > 0.95
    assert abs(attack.roc([Answer(0, 998)]).auc - 0.5) < 0.15
    with pytest.raises(ValueError, match="at least 3 shadow models"):
        ShadowAttack(seen[:2], unseen, samples)


def test_hidden_is_not_unlearned(trained, task):
    """One labelled sample brings a class back after an edit of the last layer alone.

    Not after one of the features.
    """
    hidden, moved = (unlearn(trained, task, m).model for m in ("rayleigh", "two-sided"))
    assert accuracy(hidden, task.test_forget) < 15
    probe = [
        np.mean([relearn(m, task, draw=s) for s in range(4)]) for m in (trained, hidden, moved)
    ]
    assert probe[0] > 50 and probe[1] == probe[0] and probe[2] < probe[0] - 15
    assert accuracy(moved, task.retain) > 0.98 * accuracy(trained, task.retain)


def test_penultimate_is_what_the_layer_that_runs_last_reads():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.body = nn.Linear(3, 4)

        def forward(self, x):
            return self.head(self.body(x).relu())

    model, x = HeadFirst(), torch.randn(5, 3)
    torch.testing.assert_close(penultimate(model, x), model.body(x).relu().detach())


def test_nan_is_told(task):
    model = build("mlp", 10, 1)
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="outputs are NaN"):
        measure(model, task)
