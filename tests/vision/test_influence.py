"""Influence, NTK and Newton against independent references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erase_sd.vision import Task, make_task, measure, unlearn
from erase_sd.vision.methods.influence import twice_differentiable
from erase_sd.vision.pretrained import Logits
from erase_sd.vision.train import accuracy, logits
from tests.vision.helpers import flat, grads, loss


def test_influence_follows_woodfishers_recursion_in_numpy(tiny):
    """Five retained gradients, the recursion written with matrices of numpy.

    Order as the seed draws it.
    """
    model, task = tiny
    M = 4
    picked = task.retain.sample(M + 1, 0)

    def g(part):
        return flat(grads(model, loss(model, part))).numpy()

    single = [g(picked[torch.tensor([i])]) for i in range(len(picked))]
    assert len(single) == 5
    k = len(task.forget) / 10 * (g(task.forget) - g(task.retain))
    o = single[0]
    for s in single[1:]:
        rank_one = np.outer(o, s) / (M + o @ s)
        k, o = k - rank_one @ k, o - rank_one @ o
    want = flat(model.parameters()).detach().numpy() + 2 * k
    got = flat(unlearn(model, task, "iu", alpha=2.0, samples=M).model.parameters()).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-6)
    plain = flat(model.parameters()).detach().numpy() + 2 * len(task.forget) / 10 * (
        g(task.forget) - g(task.retain)
    )
    assert np.abs(got - plain).max() > 1e-4  # the recursion matters here


def exact_ntk(model, task, ridge):
    """Both ridge regressions with a dense Jacobian."""

    def solution(part):
        rows, residual = [], []
        for i in range(len(part)):
            out = model(part.x[i : i + 1])[0]
            target = F.one_hot(part.y[i], 3) - out.softmax(0)
            for c in range(3):
                rows.append(
                    flat(torch.autograd.grad(out[c], list(model.parameters()), retain_graph=True))
                )
                residual.append(target[c])
        J, r, n = torch.stack(rows), torch.stack(residual).detach(), len(part)
        return J.T @ torch.linalg.solve(J @ J.T / n + ridge * torch.eye(len(J)), r) / n

    return solution(task.retain) - solution(task.forget.joined(task.retain))


def test_ntk_is_the_difference_of_two_ridge_regressions(tiny):
    model, task = tiny
    got = unlearn(model, task, "ntk", ridge=0.3, iterations=200, scale=7.0).model
    want = flat(model.parameters()) + 7 * exact_ntk(model, task, 0.3)
    torch.testing.assert_close(flat(got.parameters()), want, atol=1e-5, rtol=1e-4)


def test_ntk_finds_the_scale_at_which_it_forgets(trained, task, digits):
    """Its own length is a no-op on a network that fits its data; the one found is written down."""
    raw = unlearn(trained, task, "ntk", scale=1.0).model
    assert measure(raw, task)["UA"] < 5
    found = unlearn(trained, task, "ntk")
    after = measure(found.model, task)
    assert found.options["scale"] > 10 and after["UA"] > 80 and after["RA"] > 80
    few = make_task(digits, "random:0.05", seed=1)
    single = unlearn(trained, few, "ntk")
    assert accuracy(single.model, few.forget) <= accuracy(single.model, few.validation) + 5
    blind = Task(few.forget, few.retain, few.test, few.test_forget, (), 10, "x")
    with pytest.raises(ValueError, match="needs unseen samples"):
        unlearn(trained, blind, "ntk")


def test_first_order(tiny):
    model, task = tiny
    got = unlearn(model, task, "first-order", tau=0.1).model
    g = flat(grads(model, loss(model, task.forget, "sum")))
    torch.testing.assert_close(flat(got.parameters()), flat(model.parameters()) + 0.1 * g)
    right = torch.ones_like(task.forget.y)
    known = Task(
        *(getattr(task, k) for k in ("forget", "retain", "test", "test_forget")),
        (),
        3,
        "wrong labels",
        corrected=right,
    )
    got = unlearn(model, known, "first-order", tau=0.1).model
    clean = flat(grads(model, loss(model, task.forget.relabelled(right), "sum")))
    torch.testing.assert_close(flat(got.parameters()), flat(model.parameters()) + 0.1 * (g - clean))


def test_second_order_is_a_newton_step(tiny):
    model, task = tiny
    got = unlearn(model, task, "second-order", damping=1.0, scale=20.0, iterations=600).model
    names, values = zip(*model.named_parameters(), strict=True)

    def f(*weights):
        out = torch.func.functional_call(
            model, dict(zip(names, weights, strict=True)), (task.retain.x,)
        )
        return F.cross_entropy(out, task.retain.y)

    H = torch.autograd.functional.hessian(f, tuple(p.detach() for p in values))
    H = torch.cat(
        [
            torch.cat([h.reshape(a.numel(), -1) for h in row], 1)
            for row, a in zip(H, values, strict=True)
        ]
    )
    g = flat(grads(model, loss(model, task.forget, "sum"))) / 10
    want = flat(values) + torch.linalg.solve(H + torch.eye(len(g)), g)
    torch.testing.assert_close(flat(got.parameters()), want, atol=1e-4, rtol=1e-3)


def test_lissa_says_when_it_diverges(tiny):
    model, task = tiny
    with pytest.raises(ValueError, match="raise its scale"):
        unlearn(model, task, "second-order", scale=1e-6, iterations=200)


@pytest.mark.parametrize("method", ["ntk", "second-order"])
@pytest.mark.parametrize("kind", ["sdpa", "torch"])
def test_attention_has_second_and_forward_derivatives(method, kind, vit, pictures_task):
    """Fused attention has neither: plain products stand in for it while these methods run."""
    if kind == "sdpa":
        assert vit.config._attn_implementation == "sdpa"
        model = Logits(vit)
    else:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)
        model = nn.Sequential(nn.Flatten(1, 2), block, nn.Flatten(), nn.Linear(192, 3)).eval()
    options = (
        {"samples": 6, "iterations": 3, "scale": 3.0} if method == "ntk" else {"iterations": 2}
    )
    new = unlearn(model, pictures_task, method, **options).model
    x = pictures_task.test.x
    assert torch.isfinite(logits(new, x)).all() and not torch.equal(
        logits(new, x), logits(model, x)
    )


class Once(torch.autograd.Function):
    """A square that can be differentiated once, as fused kernels are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, x):
        return Once.apply(self.head(x.flatten(1)))


@pytest.mark.parametrize("method", ["ntk", "second-order"])
def test_a_network_without_such_derivatives_is_refused_by_name(method, pictures_task):
    model = Fused()
    unlearn(model, pictures_task, "first-order")
    with pytest.raises(ValueError, match="expected a network with second and forward derivatives"):
        unlearn(model, pictures_task, method)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mine"), twice_differentiable():
        raise RuntimeError("mine")


class Spare(nn.Module):
    """Holds a layer that its answers do not need."""

    def __init__(self):
        super().__init__()
        self.unused, self.head = nn.Linear(4, 4), nn.Linear(192, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("method", ["iu", "ntk", "first-order", "second-order", "ssd", "salun"])
def test_what_a_network_does_not_use_stays(method, pictures_task):
    torch.manual_seed(0)
    model = Spare()
    options = {"ntk": {"scale": 3.0}, "ssd": {"alpha": 1.0}, "salun": {"epochs": 1}}
    new = unlearn(model, pictures_task, method, **options.get(method, {})).model
    assert torch.equal(new.unused.weight, model.unused.weight)
    assert not torch.equal(new.head.weight, model.head.weight)
