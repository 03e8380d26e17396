"""One step of each gradient method against the formula written out."""

import copy

import pytest
import torch
import torch.nn.functional as F

from erase_sd.vision import METHODS, build, make_task, unlearn
from erase_sd.vision.methods.relabel import saliency
from erase_sd.vision.methods.retrain import reset
from erase_sd.vision.pretrained import Logits
from erase_sd.vision.train import logits
from tests.vision.helpers import close, descended, flat, grads, loss, same

FAST = {
    "retrain": {"epochs": 8},
    "iu": {"samples": 20},
    "gf": {"alphas_retain": (100,), "alphas_forget": (3,)},
    "pgu": {"epochs": 3},
    "depoison": {"epochs": 2},
    "ntk": {"samples": 40, "iterations": 10},
    "jit": {"draws": 2},
    "second-order": {"iterations": 4},
    "ga": {"lr": 0.01},
    "two-sided": {"samples": 200},
}


def go(name, tiny, **options):
    model, task = tiny
    return unlearn(model, task, name, **options).model


@pytest.mark.parametrize("method", METHODS)
def test_every_method(trained, task, method):
    """Each returns a new, finite model that forgets or moves, the same for the same seed.

    And leaves its input.
    """
    before = copy.deepcopy(trained)
    options = FAST.get(method, {"epochs": 1} if "epochs" in METHODS[method].options else {})
    first = unlearn(trained, task, method, **options)
    assert same(trained, before) and all(p.grad is None for p in trained.parameters())
    again = unlearn(trained, task, method, **options)
    x = task.test_forget.x
    out = logits(first.model, x)
    assert out.shape == (len(x), 10) and not torch.isnan(out).any()
    assert torch.equal(out, logits(again.model, x))
    moved = (out - logits(trained, x)).abs().mean()
    assert moved > 1e-3, "a method that changes nothing that can be seen"


def test_options_are_refused_by_name(trained, task):
    with pytest.raises(ValueError, match="salun has no option 'lrr'; it has epochs, lr, share"):
        unlearn(trained, task, "salun", lrr=1)
    with pytest.raises(ValueError, match="no method 'forget'"):
        unlearn(trained, task, "forget")


def test_gradient_ascent(tiny):
    model, task = tiny
    got = go("ga", tiny, epochs=1, lr=0.1)
    close(got, descended(model, grads(model, -loss(model, task.forget))))


def test_finetune(tiny):
    model, task = tiny
    close(
        go("ft", tiny, epochs=1, lr=0.1), descended(model, grads(model, loss(model, task.retain)))
    )


def test_l1(tiny):
    model, task = tiny
    got = go("l1", tiny, epochs=1, lr=0.1, gamma=0.01)
    g = grads(model, loss(model, task.retain))
    close(
        got,
        descended(model, [d + 0.01 * p.sign() for p, d in zip(model.parameters(), g, strict=True)]),
    )


def test_salun_moves_the_salient_half(tiny):
    model, task = tiny
    masks = saliency(model, task, 0.5)
    g = flat([d.abs() for d in grads(model, loss(model, task.forget))])
    assert torch.equal(flat(masks), g > g.sort().values[round(len(g) / 2) - 1])
    got = go("salun", tiny, epochs=3, lr=0.1)
    for p, q, m in zip(got.parameters(), model.parameters(), masks, strict=True):
        assert torch.equal(p[~m], q[~m]) and not torch.equal(p[m], q[m])


def test_random_labels_move_as_the_seed_says(tiny):
    model, task = tiny
    got = go("rl", tiny, epochs=1, lr=0.1, seed=5)
    drawn = torch.randint(3, (len(task.forget),), generator=torch.Generator().manual_seed(6))
    x, y = torch.cat([task.forget.x, task.retain.x]), torch.cat([drawn, task.retain.y])
    close(got, descended(model, grads(model, F.cross_entropy(model(x), y))))


def test_ssd(tiny):
    model, task = tiny
    got = go("ssd", tiny, alpha=0.5, dampening=0.7)
    f = grads(model, loss(model, task.forget))
    d = grads(model, loss(model, task.forget.joined(task.retain)))
    want = []
    for p, a, c in zip(model.parameters(), f, d, strict=True):
        a, c = a**2, c**2
        want.append(torch.where(a > 0.5 * c, p * (0.7 * c / a).clamp(max=1), p))
    close(got, want)


class TestBoundary:
    def test_expanding_with_no_epoch_is_the_model(self, tiny):
        close(go("be", tiny, epochs=0), list(tiny[0].parameters()))

    def test_the_new_row_is_fresh(self, tiny):
        """One step by hand with the fourth row drawn as `nn.Linear` draws it.

        Not as a mean of the others.
        """
        model, task = tiny
        got = go("be", tiny, epochs=1, lr=0.1, seed=3)
        torch.manual_seed(3)
        fresh = torch.nn.Linear(4, 4).double()
        wide = copy.deepcopy(model)
        wide[2] = torch.nn.Linear(4, 4).double()
        with torch.no_grad():
            wide[2].weight.copy_(torch.cat([model[2].weight, fresh.weight[3:]]))
            wide[2].bias.copy_(torch.cat([model[2].bias, fresh.bias[3:]]))
        shadow = torch.full_like(task.forget.y, 3)
        want = descended(wide, grads(wide, F.cross_entropy(wide(task.forget.x), shadow)))
        for p, q in zip(got.parameters(), want, strict=True):
            torch.testing.assert_close(p, q[: len(p)], atol=1e-7, rtol=1e-6)

    def test_shrink_takes_the_neighbour(self, tiny):
        model, task = tiny
        x = task.forget.x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(model(x), task.forget.y), x)
        moved = (x + 0.5 * g.sign()).clamp(task.forget.x.min(), task.forget.x.max())
        y = model(moved).argmax(1)
        got = go("bs", tiny, epochs=1, lr=0.1, bound=0.5)
        close(got, descended(model, grads(model, F.cross_entropy(model(task.forget.x), y))))


def test_jit(tiny):
    model, task = tiny
    got = go("jit", tiny, lr=0.1, noise=0.5, draws=1, epochs=1, seed=3)
    order = torch.randperm(len(task.forget), generator=torch.Generator().manual_seed(3))
    x = task.forget.x[order]
    e = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()
    k = ((model(x) - model(x + e).detach()).norm(dim=1) / e.norm(dim=1)).mean()
    close(got, descended(model, grads(model, k)))


def test_scrub(tiny):
    """At the teacher the divergence has no gradient.

    Weight decay moves the forget step, the labels the other.
    """
    model, task = tiny
    got = go("scrub", tiny, epochs=1, forget_epochs=1, lr=0.1, gamma=0.9)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1 - 0.1 * 5e-4)
    mine, told = (F.log_softmax(m(task.retain.x) / 4, 1) for m in (moved, model))
    kl = F.kl_div(mine, told, reduction="batchmean", log_target=True) * 16
    close(got, descended(moved, grads(moved, 0.9 * loss(moved, task.retain) + 1e-3 * kl)))
    away = unlearn(
        got, task, "scrub", epochs=2, forget_epochs=2, lr=0.1, alpha=0.0, gamma=0.0
    ).model
    assert not same(away, got)


class TestAnew:
    def test_eu_k_freezes_the_rest(self, tiny):
        model, _ = tiny
        got = go("eu-k", tiny, k=1, epochs=2)
        assert torch.equal(got[0].weight, model[0].weight) and not torch.equal(
            got[2].weight, model[2].weight
        )
        with pytest.raises(ValueError, match="k of 1..2, got 3"):
            go("eu-k", tiny)

    def test_eu_k_leaves_frozen_statistics_alone(self, pictures_task):
        model = build("resnet20", 3)
        new = unlearn(model, pictures_task, "eu-k", epochs=1).model
        assert torch.equal(new.bn1.running_mean, model.bn1.running_mean)
        fresh = [
            n
            for n, p in new.named_parameters()
            if p.ndim > 1 and not torch.equal(p, model.get_parameter(n))
        ]
        assert fresh == [
            "layer3.2.conv1.weight",
            "layer3.2.conv2.weight",
            "linear.weight",
        ]  # the last three

    def test_a_transformers_model_is_trained_anew(self, vit, pictures_task):
        model = Logits(vit)
        a, b = (reset(model, seed=s) for s in (5, 5))
        assert same(a, b) and not same(a, model)
        new = unlearn(model, pictures_task, "retrain", epochs=1).model
        assert torch.isfinite(logits(new, pictures_task.test.x)).all()

    def test_what_cannot_be_reset_is_named(self):
        class Odd(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(1))

        with pytest.raises(ValueError, match=r"0 \(Odd\) cannot reset"):
            reset(torch.nn.Sequential(Odd()))


def test_labels_of_single_samples_stay(trained, digits):
    t = make_task(digits, "class:0#20", seed=1)
    assert len(t.forget) == 20 and set(t.forget.y.tolist()) == {0} and not t.classes
    assert (t.retain.y == 0).any() and t.validation is not None
