"""Closed forms: what they forget, what they keep, and against which algebra."""

import copy

import pytest
import torch

from erase_sd.algebra.methods import rayleigh as ordinary
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem
from erase_sd.vision import Cache, Samples, Task, make_task, measure, unlearn
from erase_sd.vision.features import collect
from erase_sd.vision.layers import layers
from erase_sd.vision.train import accuracy, logits
from tests.vision.helpers import same


def features(model, x):
    """What the classifier of the digits network reads, by hand."""
    return torch.relu(model[3](torch.relu(model[1](x.flatten(1))))).double().detach()


def test_default_forgets_and_keeps(trained, task):
    before, after = measure(trained, task), measure(unlearn(trained, task).model, task)
    assert before["UA"] < 5 and after["UA"] > 95
    assert after["RA"] > before["RA"] - 1.5 and after["TA"] > before["TA"] - 2


def test_unlink_is_its_algorithm(trained, task):
    """Algorithm 1 with numpy's words: `W − W U Uᵀ`, U from an SVD of the features."""
    U = torch.linalg.svd(features(trained, task.forget.x).T, full_matrices=False)[0][:, :2]
    W = trained[5].weight.double()
    got = unlearn(trained, task, "unlink", rank=2).model[5]
    torch.testing.assert_close(got.weight.double(), W - W @ U @ U.T, atol=1e-6, rtol=1e-5)
    assert torch.equal(got.bias, trained[5].bias)


@pytest.mark.parametrize("method", ["rayleigh", "unlink", "affine"])
def test_several_classes_take_a_direction_each_and_say_so(trained, digits, method):
    many = make_task(digits, "class:1,4,7")
    result = unlearn(trained, many, method)
    assert result.options["rank"] == 3
    after = measure(result.model, many)
    assert after["UA"] > 85
    one = unlearn(trained, many, method, rank=1)
    assert one.options["rank"] == 1 and measure(one.model, many)["UA"] < after["UA"]


def test_what_was_chosen_is_recorded_and_zero_is_zero(trained, task):
    assert unlearn(trained, task).options["epsilon"] == 0.1
    assert unlearn(trained, task, epsilon=0.3).options["epsilon"] == 0.3
    small, chosen = (unlearn(trained, task, epsilon=e).model for e in (1e-9, None))
    assert not same(small, chosen)  # a given value is never replaced by the automatic one
    one = task.shown(task.forget[torch.tensor([0])])
    assert unlearn(trained, one).options["epsilon"] == 1.0


def test_a_large_ridge_is_unlink(trained, task):
    a = unlearn(trained, task, "rayleigh", epsilon=1e9).model
    assert torch.allclose(a[5].weight, unlearn(trained, task, "unlink").model[5].weight, atol=1e-5)


def test_equation_15_as_printed(trained, task):
    """`W − W U diag(min(1, λ)) Uᵀ` from an independent whitening.

    And it depends on the features' scale.
    """
    f, r = (features(trained, p.x) for p in (task.forget, task.retain))
    C = r.T @ r / len(r)
    C = C + 0.1 * C.trace() / len(C) * torch.eye(len(C))
    values, Q = torch.linalg.eigh(C)
    root = Q / values.sqrt() @ Q.T  # another square root than Cholesky's gives the same U
    lam, V = torch.linalg.eigh(root @ (f.T @ f / len(f)) @ root)
    u, W = root @ V[:, -1:], trained[5].weight.double()
    want = W - W @ u * lam[-1].clamp(max=1) @ u.T
    got = unlearn(trained, task, variant="paper").model[5].weight.double()
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
    scaled = copy.deepcopy(trained)
    with torch.no_grad():
        scaled[3].weight *= 10
        scaled[3].bias *= 10
        scaled[5].weight /= 10
    a, b = (logits(unlearn(m, task, variant="paper").model, task.test.x) for m in (trained, scaled))
    assert (a - b).abs().max() > 1
    a, b = (logits(unlearn(m, task).model, task.test.x) for m in (trained, scaled))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_least_squares_identity():
    torch.manual_seed(0)
    f, r = (SecondMoment.of(torch.randn(50, 6)) for _ in range(2))
    edit = ordinary.solve(
        Problem(f, r), ordinary.Options(variant="lsq", epsilon=0.01, protect_null=False)
    )
    C = r.matrix + r.ridge(0.01) * torch.eye(6)
    torch.testing.assert_close(edit.matrix, C @ torch.linalg.inv(C + f.matrix))


def test_affine_fixes_the_retained_mean(trained, task):
    new = unlearn(trained, task, "affine").model
    mean = features(trained, task.retain.x).mean(0).float()
    torch.testing.assert_close(new[5](mean), trained[5](mean), atol=1e-4, rtol=1e-4)
    assert accuracy(new, task.forget) < 10


@pytest.mark.parametrize("method", ["rayleigh", "affine"])
def test_a_cache_of_the_training_set_stands_for_what_is_retained(trained, task, digits, method):
    """And no retained sample is read: those of the task are replaced by noise."""
    cache = Cache.of(trained, Samples(digits.train_x, digits.train_y))
    noise = Samples(torch.randn(4, 1, 8, 8), task.retain.y[:4])
    blind = Task(task.forget, noise, task.test, task.test_forget, task.classes, 10, "blind")
    got, want = (
        unlearn(trained, blind, method, cache=cache).model,
        unlearn(trained, task, method).model,
    )
    torch.testing.assert_close(got[5].weight, want[5].weight, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="takes no cache"):
        unlearn(trained, task, "unlink", cache=cache)


def test_least_squares_takes_all_directions(trained, task):
    assert unlearn(trained, task, variant="lsq").options["rank"] is None
    with pytest.raises(ValueError, match="expected no rank, got 2"):
        unlearn(trained, task, variant="lsq", rank=2)


def test_half_precision(trained, task):
    new = unlearn(copy.deepcopy(trained).bfloat16(), task).model
    assert new[5].weight.dtype == torch.bfloat16 and accuracy(new, task.forget) < 15


def test_mask_hides_and_needs_classes(trained, task, digits):
    new = unlearn(trained, task, "mask").model
    assert accuracy(new, task.forget) == 0 and accuracy(new, task.retain) >= accuracy(
        trained, task.retain
    )
    with pytest.raises(ValueError, match="hides whole classes"):
        unlearn(trained, make_task(digits, "random:5"), "mask")


def test_unlink_below_changes_what_single_samples_do(trained, digits):
    """By default it removes the weakest directions of middle layers.

    Not nothing, and not the classes.
    """
    t = make_task(digits, "random:0.1", seed=0)
    new = unlearn(trained, t, "unlink-below").model
    moved = (logits(new, t.forget.x) - logits(trained, t.forget.x)).abs().mean()
    assert moved > 0.1 and 80 < accuracy(new, t.retain) < 100
    assert torch.equal(new[1].weight, trained[1].weight) and torch.equal(
        new[5].weight, trained[5].weight
    )
    rows = torch.relu(trained[1](t.forget.x.flatten(1))).double().detach()
    values, V = torch.linalg.eigh(rows.T @ rows)
    U = V[:, values.clamp(min=0).sqrt() < 0.2 * values[-1].sqrt()]
    W = trained[3].weight.double()
    got = unlearn(trained, t, "unlink-below", below=0.2).model[3].weight.double()
    torch.testing.assert_close(got, W - W @ U @ U.T, atol=1e-5, rtol=1e-4)


def test_gf_moves_by_its_formula(trained, task):
    """One grid point against dense algebra."""
    result = unlearn(
        trained, task, "gf", layers="last", samples=10**6, alphas_retain=(100,), alphas_forget=(3,)
    )
    order = [
        torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
        for p in (task.forget, task.retain)
    ]
    parts = [
        p[o[: len(p) * 4 // 5]] for p, o in zip((task.forget, task.retain), order, strict=True)
    ]
    P = []
    for part, alpha in zip(parts, (3, 100), strict=True):
        _, s, vh = torch.linalg.svd(features(trained, part.x), full_matrices=False)
        energy = s**2 / (s**2).sum()
        P.append(vh.T @ torch.diag(alpha * energy / ((alpha - 1) * energy + 1)) @ vh)
    want = trained[5].weight.double() @ (torch.eye(64) - P[0] + P[1] @ P[0])
    torch.testing.assert_close(result.model[5].weight.double(), want, atol=1e-5, rtol=1e-4)


def test_gf_takes_the_best_of_its_grid_on_samples_that_gave_no_feature(trained, task):
    grid = {"alphas_retain": (1, 300), "alphas_forget": (1, 30), "layers": "last"}
    best = unlearn(trained, task, "gf", **grid)
    scores = {}
    held = []
    for part in (task.forget, task.retain):
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        count = min(900, len(part) * 4 // 5)
        held.append(part[order[count : count + 900]])
    for r in (1, 300):
        for f in (1, 30):
            new = unlearn(
                trained, task, "gf", layers="last", alphas_retain=(r,), alphas_forget=(f,)
            ).model
            scores[r, f] = accuracy(new, held[1]) * (100 - accuracy(new, held[0]))
    top = max(scores, key=scores.get)
    assert (best.options["alphas_retain"], best.options["alphas_forget"]) == ((top[0],), (top[1],))
    assert len(set(scores.values())) > 1
    with pytest.raises(ValueError, match="empty grid"):
        unlearn(trained, task, "gf", alphas_retain=())


def test_edits_leave_batch_norm_alone(pictures_task):
    from erase_sd.vision import build

    model = build("resnet20", 3)
    for method, options in (("rayleigh", {"layers": "all"}), ("pgu", {"epochs": 2})):
        new = unlearn(model, pictures_task, method, **options).model
        for (name, a), c in zip(model.state_dict().items(), new.state_dict().values(), strict=True):
            assert "bn" not in name or torch.equal(a, c)


def test_all_layers_recomputed_differ_from_all_at_once(trained, task):
    once = unlearn(trained, task, layers="all").model
    again = unlearn(trained, task, layers="all", recompute=True).model
    assert torch.equal(once[1].weight, again[1].weight) and not torch.equal(
        once[3].weight, again[3].weight
    )
    gone = collect(once, layers(once, "3"), task.forget.x)["3"][0]
    assert gone.count == len(task.forget)
