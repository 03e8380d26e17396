"""Classifier unlearning: theorems of the features and edits, every method on one table, each baseline's reference."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from erase_sd.cli.main import main
from erase_sd.edit import LowRankEdit
from erase_sd.methods.problem import Problem
from erase_sd.methods.rayleigh import rayleigh as rayleigh_edit
from erase_sd.methods.unlink import unlink as unlink_edit
from erase_sd.moments import SecondMoment
from erase_sd.vision import METHODS, build, closed_form, load_data, make_task, measure, pgu, unlearn
from erase_sd.vision import baselines as b
from erase_sd.vision.layers import Layer, collect, edited, layers
from erase_sd.vision.metrics import average_gap, relearn
from erase_sd.vision.models import load_model, load_weights, save_weights
from erase_sd.vision.tables import Setting, cases, headed, run
from erase_sd.vision.task import Samples, Task
from erase_sd.vision.train import accuracy, cross_entropy, logits, one_cycle, sgd


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(digits):
    """A small network that knows the digits."""
    model = build("mlp", 10, 1)
    whole = Samples(digits.train_x, digits.train_y)
    return sgd(model, whole, cross_entropy, epochs=25, lr=0.05, batch=64, schedule=one_cycle)


@pytest.fixture(scope="module")
def task(digits):
    return make_task(digits, "class:3")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class TestLayers:
    @settings(max_examples=40, deadline=None)
    @given(
        kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.sampled_from([0, 1, 2]),
        dilation=st.integers(1, 2), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99),
        mode=st.sampled_from(["zeros", "reflect", "circular"]),
    )  # fmt: skip
    def test_unfolding_is_the_convolution(self, kernel, stride, padding, dilation, groups, seed, mode):
        torch.manual_seed(seed)
        conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode).double()
        x = torch.randn(3, 4, 9, 7).double()
        layer = Layer("conv", conv)
        parts = [torch.cat(chunks) for chunks in zip(*layer.rows(x), strict=True)]
        out = torch.cat([rows @ w.T for rows, w in zip(parts, layer.matrices(), strict=True)], dim=1)
        want = conv(x)
        torch.testing.assert_close(out.reshape(3, -1, 8).transpose(1, 2).reshape(want.shape), want)

    def test_same_padding_and_depthwise(self):
        conv = nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=6, bias=False).double()
        x = torch.randn(2, 6, 8, 8).double()
        layer = Layer("conv", conv)
        assert layer.groups == 6 and layer.width == 9
        (parts,) = layer.rows(x)
        out = torch.cat([rows @ w.T for rows, w in zip(parts, layer.matrices(), strict=True)], dim=1)
        torch.testing.assert_close(out.reshape(2, 64, 6).transpose(1, 2).reshape(2, 6, 8, 8), conv(x))

    def test_an_edit_of_the_weight_is_an_edit_of_the_features(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(100, 3)).double()
        edits = [LowRankEdit(torch.randn(9, 2), torch.randn(9, 2)) for _ in range(2)]
        new = edited(model, {"0": edits})
        layer, x = layers(model, "0")[0], torch.randn(5, 2, 5, 5).double()
        (parts,) = layer.rows(x)
        moved = [e.features(r) @ w.T for e, r, w in zip(edits, parts, layer.matrices(), strict=True)]
        out = torch.cat(moved, 1).reshape(5, 25, 4).transpose(1, 2).reshape(5, 4, 5, 5) + model[0].bias[:, None, None]
        torch.testing.assert_close(new[0](x), out)
        assert torch.equal(new[2].weight, model[2].weight)

    def test_moments_stream_and_merge(self, trained, digits):
        chosen, x = layers(trained, "all"), digits.train_x[:200]
        whole = collect(trained, chosen, x, batch=200)
        parts = collect(trained, chosen, x[:70], batch=7), collect(trained, chosen, x[70:], batch=64)
        for name in whole:
            torch.testing.assert_close(parts[0][name][0].gram + parts[1][name][0].gram, whole[name][0].gram,
                                       rtol=1e-5, atol=1e-5)  # fmt: skip

    def test_attention_of_torch(self):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0).eval()
        names = [y.name for y in layers(layer, "all")]
        assert names == ["self_attn", "linear1", "linear2"]
        x = torch.randn(4, 5, 8)
        rows = collect(layer.train(), layers(layer, "self_attn"), x)["self_attn"][0]
        torch.testing.assert_close(rows.gram, x.reshape(-1, 8).double().T @ x.reshape(-1, 8).double())
        edit = unlink_edit(Problem(rows, SecondMoment.zeros(8)), rank=2)
        new = edited(layer, {"self_attn": [edit]})
        want = layer.self_attn.in_proj_weight @ edit.matrix.float()
        torch.testing.assert_close(new.self_attn.in_proj_weight, want, atol=1e-6, rtol=1e-4)

    def test_attention_to_something_else_is_refused(self):
        attention = nn.MultiheadAttention(4, 1, batch_first=True)

        class Cross(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = attention

            def forward(self, x):
                return self.attention(x, x + 1, x + 1)[0]

        model = Cross()
        with pytest.raises(ValueError, match="only self-attention"):
            collect(model, layers(model), torch.randn(2, 3, 4))

    def test_selection(self, trained):
        assert [y.name for y in layers(trained, "last")] == ["5"]
        assert [y.name for y in layers(trained, ["1", "3"])] == ["1", "3"]
        with pytest.raises(ValueError, match="no layer matches nothing; there are 1, 3, 5"):
            layers(trained, "nothing")

    def test_a_transformers_vit(self):
        from transformers import ViTConfig, ViTForImageClassification

        from erase_sd.vision.models import Logits

        torch.manual_seed(0)
        config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                           image_size=8, patch_size=4, num_labels=3)  # fmt: skip
        model = Logits(ViTForImageClassification(config)).eval()
        x, y = torch.randn(30, 3, 8, 8), torch.arange(30) % 3
        whole = Samples(x, y)
        t = Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "class:0")
        for select in ("last", "*q_proj", "*attention*"):
            new = unlearn(model, t, "rayleigh", layers=select).model
            assert not same(new, model) and torch.isfinite(logits(new, x)).all()


class TestClosedForm:
    def test_default_forgets_and_keeps(self, trained, task):
        before, after = measure(trained, task), measure(unlearn(trained, task).model, task)
        assert before["UA"] < 5 and after["UA"] > 95
        assert after["RA"] > before["RA"] - 1.5 and after["TA"] > before["TA"] - 2

    def test_several_classes(self, trained, digits):
        many = make_task(digits, "class:1,4,7")
        after = measure(unlearn(trained, many).model, many)
        assert after["UA"] > 90 and after["RA"] > 95

    def test_a_large_ridge_is_unlink(self, trained, task):
        a = unlearn(trained, task, "rayleigh", epsilon=1e9).model
        assert torch.allclose(a[5].weight, unlearn(trained, task, "unlink").model[5].weight, atol=1e-5)

    def test_rescaled_features_change_nothing(self, trained, task):
        """A factor that the layers around it share leaves the network's function as it is, and so the edit's."""
        scaled = copy.deepcopy(trained)
        with torch.no_grad():
            scaled[3].weight *= 100
            scaled[3].bias *= 100
            scaled[5].weight /= 100
        a, b_ = (logits(unlearn(m, task).model, task.test.x) for m in (trained, scaled))
        torch.testing.assert_close(a, b_, atol=1e-3, rtol=1e-3)

    def test_least_squares_identity(self):
        torch.manual_seed(0)
        f, r = (SecondMoment.of(torch.randn(50, 6)) for _ in range(2))
        edit = rayleigh_edit(Problem(f, r), variant="lsq", epsilon=0.01, protect_null=False)
        C = r.ridged(0.01)
        torch.testing.assert_close(edit.matrix, C @ torch.linalg.inv(C + f.matrix))
        hard = rayleigh_edit(Problem(f, r), rank=2, epsilon=0.01, protect_null=False)
        P = torch.eye(6).double() - hard.matrix
        torch.testing.assert_close(P @ P, P)
        U = hard.B
        torch.testing.assert_close(U.T @ C @ U, torch.eye(2).double())

    def test_affine_fixes_the_retained_mean(self, trained, task):
        new = unlearn(trained, task, "affine").model
        mean = collect(trained, layers(trained), task.retain.x)["5"][0].mean.float()
        torch.testing.assert_close(new[5](mean), trained[5](mean), atol=1e-4, rtol=1e-4)
        assert accuracy(new, task.forget) < 10

    def test_one_sample(self, trained, task):
        one = Task(task.forget[torch.tensor([0])], task.retain, task.test, task.test_forget, (3,), 10, "one")
        after = unlearn(trained, one).model
        assert accuracy(after, task.forget) < 60 and accuracy(after, task.retain) > 90

    def test_cached_moments_are_the_pass(self, trained, task):
        cache = collect(trained, layers(trained), task.retain.x)
        assert same(unlearn(trained, task, retained=cache).model, unlearn(trained, task).model)

    def test_half_precision(self, trained, task):
        new = unlearn(copy.deepcopy(trained).bfloat16(), task).model
        assert new[5].weight.dtype == torch.bfloat16 and accuracy(new, task.forget) < 15

    def test_mask_hides_and_needs_classes(self, trained, task, digits):
        new = unlearn(trained, task, "mask").model
        assert accuracy(new, task.forget) == 0 and accuracy(new, task.retain) >= accuracy(trained, task.retain)
        with pytest.raises(ValueError, match="hides whole classes"):
            unlearn(trained, make_task(digits, "random:5"), "mask")


FAST = {
    "retrain": {"epochs": 8}, "iu": {"samples": 20}, "gf": {"alphas_retain": (100,), "alphas_forget": (3,)},
    "pgu": {"epochs": 3}, "ntk": {"samples": 40, "iterations": 10}, "jit": {"draws": 2},
    "second-order": {"iterations": 4},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method(trained, task, method):
    """Each returns a new, finite model, the same for the same seed, and leaves its input as it was."""
    before = copy.deepcopy(trained)
    options = FAST.get(method, {"epochs": 1} if "epochs" in METHODS[method].options else {})
    first = unlearn(trained, task, method, preset="digits", **options)
    assert same(trained, before) and all(p.grad is None for p in trained.parameters())
    again = unlearn(trained, task, method, preset="digits", **options)
    x = task.test.x[:50]
    out = logits(first.model, x)
    assert out.shape == (50, 10) and not torch.isnan(out).any()
    assert torch.equal(out, logits(again.model, x)) and first.seconds > 0
    changed = not torch.equal(out, logits(trained, x))
    assert changed or method == "unlink-below"


class Tiny:
    """A two-layer network and ten samples for references written out by hand."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        x, y = torch.randn(10, 3).double(), torch.arange(10) % 3
        whole = Samples(x, y)
        self.task = Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "tiny")

    def loss(self, model, part, reduction="mean"):
        return F.cross_entropy(model(part.x), part.y, reduction=reduction)

    def grads(self, model, value):
        return torch.autograd.grad(value, list(model.parameters()))


@pytest.fixture
def tiny():
    return Tiny()


def close(model, parameters):
    for p, q in zip(model.parameters(), parameters, strict=True):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-6)


class TestReferences:
    """One step of each gradient method against the formula written out."""

    def test_gradient_ascent(self, tiny):
        got = b.gradient_ascent(tiny.model, tiny.task, epochs=1, lr=0.1)
        g = tiny.grads(tiny.model, -tiny.loss(tiny.model, tiny.task.forget))
        close(got, [p - 0.1 * (d + 5e-4 * p) for p, d in zip(tiny.model.parameters(), g, strict=True)])

    def test_finetune(self, tiny):
        got = b.finetune(tiny.model, tiny.task, epochs=1, lr=0.1)
        g = tiny.grads(tiny.model, tiny.loss(tiny.model, tiny.task.retain))
        close(got, [p - 0.1 * (d + 5e-4 * p) for p, d in zip(tiny.model.parameters(), g, strict=True)])

    def test_l1(self, tiny):
        got = b.l1_sparse(tiny.model, tiny.task, epochs=1, lr=0.1, gamma=0.01)
        g = tiny.grads(tiny.model, tiny.loss(tiny.model, tiny.task.retain))
        close(
            got, [p - 0.1 * (d + 0.01 * p.sign() + 5e-4 * p) for p, d in zip(tiny.model.parameters(), g, strict=True)]
        )

    def test_salun_moves_the_salient_half(self, tiny):
        masks = b.saliency(tiny.model, tiny.task, 0.5)
        g = torch.cat([d.abs().flatten() for d in tiny.grads(tiny.model, tiny.loss(tiny.model, tiny.task.forget))])
        assert torch.equal(torch.cat([m.flatten() for m in masks]), g > g.sort().values[round(len(g) / 2) - 1])
        got = b.salun(tiny.model, tiny.task, epochs=3, lr=0.1)
        for p, q, m in zip(got.parameters(), tiny.model.parameters(), masks, strict=True):
            assert torch.equal(p[~m], q[~m]) and not torch.equal(p[m], q[m])

    def test_random_labels_move_as_the_seed_says(self, tiny):
        got = b.random_label(tiny.model, tiny.task, epochs=1, lr=0.1, seed=5)
        drawn = torch.randint(3, (len(tiny.task.forget),), generator=torch.Generator().manual_seed(6))
        x = torch.cat([tiny.task.forget.x, tiny.task.retain.x])
        y = torch.cat([drawn, tiny.task.retain.y])
        g = tiny.grads(tiny.model, F.cross_entropy(tiny.model(x), y))
        close(got, [p - 0.1 * (d + 5e-4 * p) for p, d in zip(tiny.model.parameters(), g, strict=True)])

    def test_influence_solves_with_the_damped_fisher(self, tiny):
        """The recursion is Sherman-Morrison for `(I + Σ g gᵀ / M)⁻¹` over the samples after the first, in its
        reference's simplification: the first two gradients alone, checked by hand."""
        got = b.influence(tiny.model, tiny.task, alpha=2.0, samples=1, seed=0)
        flat = lambda part: torch.cat([d.flatten() for d in tiny.grads(tiny.model, tiny.loss(tiny.model, part))])  # noqa: E731
        picked = tiny.task.retain.sample(2, 0)
        o, g = flat(picked[torch.tensor([0])]), flat(picked[torch.tensor([1])])
        v = len(tiny.task.forget) / 10 * (flat(tiny.task.forget) - flat(tiny.task.retain))
        k = v - (v @ g) / (1 + o @ g) * o
        want = torch.cat([p.flatten() for p in tiny.model.parameters()]) + 2 * k
        torch.testing.assert_close(torch.cat([p.flatten() for p in got.parameters()]), want)

    def test_first_order(self, tiny):
        got = b.first_order(tiny.model, tiny.task, tau=0.1)
        g = tiny.grads(tiny.model, tiny.loss(tiny.model, tiny.task.forget, "sum"))
        close(got, [p + 0.1 * d for p, d in zip(tiny.model.parameters(), g, strict=True)])

    def test_second_order_is_a_newton_step(self, tiny):
        got = b.second_order(tiny.model, tiny.task, damping=1.0, scale=20.0, iterations=600)
        names, flat = zip(*tiny.model.named_parameters(), strict=True)

        def f(*weights):
            out = torch.func.functional_call(tiny.model, dict(zip(names, weights, strict=True)), (tiny.task.retain.x,))
            return F.cross_entropy(out, tiny.task.retain.y)

        H = torch.autograd.functional.hessian(f, tuple(p.detach() for p in flat))
        H = torch.cat([torch.cat([h.reshape(a.numel(), -1) for h in row], 1) for row, a in zip(H, flat, strict=True)])
        g = (
            torch.cat([d.flatten() for d in tiny.grads(tiny.model, tiny.loss(tiny.model, tiny.task.forget, "sum"))])
            / 10
        )
        step = torch.linalg.solve(H + torch.eye(len(g)), g)
        want = torch.cat([p.flatten() for p in flat]) + step
        torch.testing.assert_close(torch.cat([p.flatten() for p in got.parameters()]), want, atol=1e-4, rtol=1e-3)

    def test_ssd(self, tiny):
        got = b.ssd(tiny.model, tiny.task, alpha=0.5, dampening=0.7)
        f = tiny.grads(tiny.model, tiny.loss(tiny.model, tiny.task.forget))
        whole = Samples(torch.cat([tiny.task.forget.x, tiny.task.retain.x]),
                        torch.cat([tiny.task.forget.y, tiny.task.retain.y]))  # fmt: skip
        d = tiny.grads(tiny.model, tiny.loss(tiny.model, whole))
        want = []
        for p, a, c in zip(tiny.model.parameters(), f, d, strict=True):
            a, c = a**2, c**2
            want.append(torch.where(a > 0.5 * c, p * (0.7 * c / a).clamp(max=1), p))
        close(got, want)

    def test_boundary_expanding_with_no_epoch_is_the_model(self, tiny):
        close(b.boundary_expanding(tiny.model, tiny.task, epochs=0), list(tiny.model.parameters()))
        got = b.boundary_expanding(tiny.model, tiny.task, epochs=5, lr=0.1)
        assert got[2].weight.shape == (3, 4) and not same(got, tiny.model)

    def test_boundary_shrink_takes_the_neighbour(self, tiny):
        x = tiny.task.forget.x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(tiny.model(x), tiny.task.forget.y), x)
        moved = (x + 0.5 * g.sign()).clamp(tiny.task.forget.x.min(), tiny.task.forget.x.max())
        y = tiny.model(moved).argmax(1)
        got = b.boundary_shrink(tiny.model, tiny.task, epochs=1, lr=0.1, bound=0.5)
        g = tiny.grads(tiny.model, F.cross_entropy(tiny.model(tiny.task.forget.x), y))
        close(got, [p - 0.1 * (d + 5e-4 * p) for p, d in zip(tiny.model.parameters(), g, strict=True)])

    def test_jit(self, tiny):
        got = b.jit(tiny.model, tiny.task, lr=0.1, noise=0.5, draws=1, epochs=1, seed=3)
        order = torch.randperm(len(tiny.task.forget), generator=torch.Generator().manual_seed(3))
        x = tiny.task.forget.x[order]
        e = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()
        k = ((tiny.model(x) - tiny.model(x + e).detach()).norm(dim=1) / e.norm(dim=1)).mean()
        g = tiny.grads(tiny.model, k)
        close(got, [p - 0.1 * (d + 5e-4 * p) for p, d in zip(tiny.model.parameters(), g, strict=True)])

    def test_scrub(self, tiny):
        """At the teacher the divergence has no gradient: weight decay moves the forget step, the labels the other."""
        got = b.scrub(tiny.model, tiny.task, epochs=1, forget_epochs=1, lr=0.1, gamma=0.9)
        moved = copy.deepcopy(tiny.model)
        with torch.no_grad():
            for p in moved.parameters():
                p.mul_(1 - 0.1 * 5e-4)
        mine, told = (F.log_softmax(m(tiny.task.retain.x) / 4, 1) for m in (moved, tiny.model))
        kl = F.kl_div(mine, told, reduction="batchmean", log_target=True) * 16
        g = tiny.grads(moved, 0.9 * tiny.loss(moved, tiny.task.retain) + 1e-3 * kl)
        close(got, [p - 0.1 * (d + 5e-4 * p) for p, d in zip(moved.parameters(), g, strict=True)])
        away = b.scrub(got, tiny.task, epochs=2, forget_epochs=2, lr=0.1, alpha=0.0, gamma=0.0)
        assert not same(away, got)

    def test_eu_k_freezes_the_rest(self, tiny):
        got = b.eu_k(tiny.model, tiny.task, k=1, epochs=2)
        assert torch.equal(got[0].weight, tiny.model[0].weight) and not torch.equal(got[2].weight, tiny.model[2].weight)

    def test_eu_k_leaves_frozen_statistics_alone(self):
        torch.manual_seed(0)
        model = build("resnet20", 3)
        x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
        whole = Samples(x, y)
        t = Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "class:0")
        new = b.eu_k(model, t, epochs=1)
        assert torch.equal(new.bn1.running_mean, model.bn1.running_mean)

    def test_ntk_is_the_difference_of_two_ridge_regressions(self, tiny):
        got = b.ntk(tiny.model, tiny.task, ridge=0.3, iterations=200)
        names = [n for n, _ in tiny.model.named_parameters()]

        def solution(part):
            rows, residual = [], []
            for i in range(len(part)):
                out = tiny.model(part.x[i : i + 1])[0]
                target = F.one_hot(part.y[i], 3) - out.softmax(0)
                for c in range(3):
                    rows.append(torch.cat([d.flatten() for d in torch.autograd.grad(
                        out[c], list(tiny.model.parameters()), retain_graph=True)]))  # fmt: skip
                    residual.append(target[c])
            J, r, n = torch.stack(rows), torch.stack(residual).detach(), len(part)
            return J.T @ torch.linalg.solve(J @ J.T / n + 0.3 * torch.eye(len(J)), r) / n

        whole = Samples(torch.cat([tiny.task.forget.x, tiny.task.retain.x]),
                        torch.cat([tiny.task.forget.y, tiny.task.retain.y]))  # fmt: skip
        want = torch.cat([p.flatten() for p in tiny.model.parameters()]) + solution(tiny.task.retain) - solution(whole)
        torch.testing.assert_close(torch.cat([p.flatten() for p in got.parameters()]), want, atol=1e-5, rtol=1e-4)
        assert len(names) == 4


class TestPgu:
    def test_cache_less_the_forgotten_is_the_retained(self, trained, task, digits):
        chosen = layers(trained, "all")
        cache = pgu.Cache.of(trained, Samples(digits.train_x, digits.train_y))
        left = cache.without(collect(trained, chosen, task.forget.x)).moments()
        direct = collect(trained, chosen, task.retain.x)
        for name, groups in left.items():
            scale = float(direct[name][0].gram.abs().max())
            torch.testing.assert_close(groups[0].gram, direct[name][0].gram, atol=1e-8 * scale, rtol=0)

    def test_projected_steps_leave_retained_features_alone(self, trained, task):
        spaces = pgu.Cache.of(trained, task.retain).spaces(0.99, "sigma2")
        projected = pgu.Projected(trained, spaces)
        gradients = [torch.randn_like(p) for p in projected.parameters]
        for layer, g in zip(projected.layers, projected.project(gradients), strict=True):
            M = spaces[layer.name][0].float()
            assert (g @ M).abs().max() < 1e-4
            twice = projected.project([g if y is layer else torch.zeros_like(y.weight) for y in projected.layers])
            torch.testing.assert_close(twice[projected.layers.index(layer)], g, atol=1e-5, rtol=1e-4)

    def test_spaces_take_the_smallest_enough(self):
        U, s = torch.eye(4).double(), torch.tensor([4.0, 3, 2, 1]).double()
        cache = pgu.Cache({"a": [(U, s)]})
        assert [cache.spaces(g)["a"][0].shape[1] for g in (0.4, 0.41, 0.7, 1.0)] == [1, 2, 2, 4]
        assert cache.spaces(0.5, "sigma2")["a"][0].shape[1] == 1
        with pytest.raises(ValueError, match="sigma or sigma2"):
            cache.spaces(0.5, "trace")

    def test_it_forgets_a_class(self, trained, task):
        after = measure(unlearn(trained, task, "pgu", gamma=0.9).model, task)
        assert after["UA"] > 90 and after["RA"] > 90

    def test_incremental_needs_no_retained_sample(self, trained, digits):
        cache = pgu.Cache.of(trained, Samples(digits.train_x, digits.train_y))
        tasks = []
        for c in (0, 1):
            t = make_task(digits, f"class:{c}")
            tasks.append(Task(t.forget, t.forget, t.test, t.test_forget, t.classes, 10, t.name))
        model, left = pgu.incremental(trained, tasks, cache)
        both = make_task(digits, "class:0,1")
        assert accuracy(model, both.forget) < 25 and accuracy(model, both.test) > 75
        assert set(left.bases) == set(cache.bases)

    def test_single_samples_stop_at_unseen_ones(self, trained, digits):
        """Forgotten samples end no better known than unseen ones, and the rest stays."""
        t = make_task(digits, "random:0.05", seed=1)
        assert t.validation is not None and len(t.validation) + len(t.test) == len(digits.test_y)
        new = unlearn(trained, t, "pgu", gamma=0.9).model
        assert accuracy(new, t.forget) <= accuracy(new, t.validation) + 3 and accuracy(new, t.retain) > 88
        with pytest.raises(ValueError, match="needs unseen samples"):
            unlearn(trained, Task(t.forget, t.retain, t.test, t.test_forget, (), 10, "x"), "pgu")

    def test_what_recombining_learnt_is_what_is_written(self, trained, task):
        """The last layer answers the same before and after its block is baked, whatever the block."""
        new = copy.deepcopy(trained)
        free = pgu.Recombined()
        spaces = pgu.Cache.of(new, task.retain).spaces(0.99)
        (block,) = free.attach(new, spaces)
        with torch.no_grad():
            block.copy_(torch.randn(block.shape, generator=torch.Generator().manual_seed(0)))
        before = logits(new, task.test.x)
        free.bake(new)
        torch.testing.assert_close(logits(new, task.test.x), before, atol=1e-3, rtol=1e-3)
        assert (before - logits(trained, task.test.x)).abs().max() > 0.1

    def test_depoisoning(self, digits):
        """Samples with a wrong label lose it."""
        y = digits.train_y.clone()
        bad = torch.nonzero(y == 1)[:, 0][:30]
        y[bad] = 7
        clean = torch.ones(len(y), dtype=torch.bool)
        clean[bad] = False
        whole, test = Samples(digits.train_x, y), Samples(digits.test_x, digits.test_y)
        model = sgd(build("mlp", 10, 1), whole, cross_entropy, epochs=40, lr=0.05, batch=64, schedule=one_cycle)
        t = Task(whole[~clean], whole[clean], test, test[torch.zeros(len(test), dtype=torch.bool)], (), 10, "poison")
        assert accuracy(model, t.forget) > 80
        after = pgu.depoison(model, t)
        assert accuracy(after, t.forget) < 40 and accuracy(after, t.test) > 80


class TestMetricsAndTasks:
    def test_gap(self):
        assert (
            average_gap({"UA": 90, "RA": 100, "TA": 95, "MIA": 100}, {"UA": 100, "RA": 100, "TA": 97, "MIA": 100}) == 3
        )

    def test_hidden_is_not_unlearned(self, trained, task):
        """One labelled sample brings a class back after an edit of the last layer alone."""
        new = unlearn(trained, task).model
        assert accuracy(new, task.test_forget) < 15 and relearn(new, task) > 50

    def test_splits(self, digits):
        t = make_task(digits, "random:0.1", seed=3)
        assert len(t.forget) == round(0.1 * len(digits.train_y)) and not len(t.test_forget) and not t.classes
        assert torch.equal(make_task(digits, "random:0.1", seed=3).forget.x, t.forget.x)
        assert len(make_task(digits, "index:1,5").forget) == 2

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("class:12", "no class '12'"),
            ("class:", "expected class"),
            ("cat", "expected class"),
            ("random:0", "between 1 and"),
            ("random:x", "a share or a number"),
            ("index:99999", "expected indices below"),
            ("subclass:lion", "no finer names"),
            ("class:0,1,2,3,4,5,6,7,8,9", "train anew"),
        ],
    )
    def test_bad_specifications(self, digits, what, message):
        with pytest.raises(ValueError, match=message):
            make_task(digits, what)

    def test_bad_labels_and_empty_sets(self, digits):
        with pytest.raises(ValueError, match="as many labels"):
            Samples(torch.zeros(3, 2), torch.zeros(2).long())
        few = Samples(torch.zeros(2, 2), torch.tensor([0, 9]))
        with pytest.raises(ValueError, match=r"labels in 0\.\.2"):
            Task(few, few, few, few, (), 3, "x")
        empty = few[torch.zeros(2, dtype=torch.bool)]
        with pytest.raises(ValueError, match="nothing to forget"):
            Task(empty, few, few, few, (), 10, "x")

    def test_frozen_batch_norm_stays(self):
        """Edits and projected steps leave batch norm's parameters and statistics as they are."""
        torch.manual_seed(0)
        model = build("resnet20", 3)
        x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
        whole = Samples(x, y)
        t = Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "class:0")
        for method in ("rayleigh", "pgu"):
            new = unlearn(model, t, method, **({"epochs": 2} if method == "pgu" else {"layers": "all"})).model
            for (name, a), c in zip(model.state_dict().items(), new.state_dict().values(), strict=True):
                assert "bn" not in name or torch.equal(a, c)


class TestFiles:
    def test_every_data_set_has_its_own_constants(self):
        from erase_sd.vision.data import _pixels

        black = np.zeros((1, 2, 2, 3), np.uint8)
        assert float(_pixels(black, "cifar100")[0, 0, 0, 0]) == pytest.approx(-0.5071 / 0.2673)
        assert float(_pixels(black, "cifar20")[0, 0, 0, 0]) == pytest.approx(-0.5071 / 0.2673)
        assert float(_pixels(black, "cifar10")[0, 0, 0, 0]) == pytest.approx(-0.485 / 0.229)

    def test_an_unlearned_emoji_clip_can_be_loaded_again(self, tmp_path):
        model = load_model("emoji-clip", 69)
        with torch.no_grad():
            model.projection.weight *= 2
        save_weights(model, tmp_path / "clip.safetensors", {})
        assert same(load_model(f"emoji-clip:{tmp_path / 'clip.safetensors'}", 69), model)
        with pytest.raises(ValueError, match="cannot read"):
            load_model(f"emoji-clip:{tmp_path / 'none.safetensors'}", 69)

    def test_a_transformers_model_is_written_as_its_folder(self, tmp_path):
        from transformers import ViTConfig, ViTForImageClassification

        from erase_sd.vision.models import Logits

        config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                           image_size=8, patch_size=4, num_labels=3)  # fmt: skip
        model = Logits(ViTForImageClassification(config)).eval()
        save_weights(model, tmp_path / "vit", {})
        assert same(load_model(str(tmp_path / "vit"), 3), model)

    def test_a_mask_has_nothing_to_write(self, trained, task, tmp_path):
        with pytest.raises(ValueError, match="changes no weight"):
            save_weights(unlearn(trained, task, "mask").model, tmp_path / "m.safetensors", {})

    def test_a_truncated_npz(self, tmp_path, digits):
        np.savez(tmp_path / "d.npz", train_images=np.zeros((40, 8, 8, 3), np.uint8))
        data = (tmp_path / "d.npz").read_bytes()
        (tmp_path / "d.npz").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="cannot read"):
            load_data(str(tmp_path / "d.npz"))

    def test_weights_round_trip_and_public_names(self, tmp_path):
        model = build("resnet20", 10)
        save_weights(model, tmp_path / "a.safetensors", {"method": "x"})
        assert same(load_model(f"resnet20:{tmp_path / 'a.safetensors'}", 10), model)
        from safetensors.torch import load_file, save_file

        state = {f"module.{k}": v for k, v in load_file(tmp_path / "a.safetensors").items()}
        state = {k: v for k, v in state.items() if "num_batches" not in k}
        save_file(state, tmp_path / "b.safetensors")
        assert same(load_weights(build("resnet20", 10, seed=4), tmp_path / "b.safetensors"), model)

    @pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet18", "vgg16-bn", "small-vgg", "all-cnn"])
    def test_architectures_answer(self, name):
        out = build(name, 7)(torch.randn(2, 3, 32, 32))
        assert out.shape == (2, 7)

    def test_what_cannot_be_loaded(self, tmp_path):
        (tmp_path / "x.safetensors").write_bytes(b"no")
        with pytest.raises(ValueError, match="cannot read"):
            load_model(f"mlp:{tmp_path / 'x.safetensors'}", 10)
        with pytest.raises(ValueError, match="pickles run code"):
            load_model(f"mlp:{tmp_path / 'x.pt'}", 10)
        save_weights(build("cnn", 10, 1), tmp_path / "c.safetensors", {})
        with pytest.raises(ValueError, match="does not fit"):
            load_model(f"mlp:{tmp_path / 'c.safetensors'}", 10)
        for where in ("nothing-here", str(tmp_path / "n.npz"), str(tmp_path / "empty")):
            with pytest.raises(ValueError, match=r"no data|cannot read|holds no"):
                load_data(where)

    def test_npz_and_folder(self, tmp_path, digits):
        from PIL import Image

        images = (digits.train_x[:40, 0] * 255).byte().numpy()[..., None].repeat(3, -1)
        labels = np.arange(40) % 4
        np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
        data = load_data(str(tmp_path / "d.npz"), size=16)
        assert data.train_x.shape == (40, 3, 16, 16) and data.classes == ("0", "1", "2", "3")
        for split in ("train", "test"):
            for c in ("a", "b"):
                (tmp_path / "f" / split / c).mkdir(parents=True)
                Image.fromarray(images[0]).save(tmp_path / "f" / split / c / "1.png")
        assert load_data(str(tmp_path / "f")).classes == ("a", "b")
        np.savez(tmp_path / "e.npz", train_images=images)
        with pytest.raises(ValueError, match="lacks train_labels"):
            load_data(str(tmp_path / "e.npz"))


def test_gf_moves_by_its_formula(trained, task):
    """One grid point against dense algebra."""
    new = closed_form.gf(trained, task, layers="last", samples=10**6, alphas_retain=(100,), alphas_forget=(3,))
    order = [torch.randperm(len(p), generator=torch.Generator().manual_seed(0)) for p in (task.forget, task.retain)]
    parts = [p[o[: len(p) * 4 // 5]] for p, o in zip((task.forget, task.retain), order, strict=True)]
    P = []
    for part, alpha in zip(parts, (3, 100), strict=True):
        X = torch.relu(trained[3](torch.relu(trained[1](part.x.flatten(1))))).double().detach()
        _, s, vh = torch.linalg.svd(X, full_matrices=False)
        energy = s**2 / (s**2).sum()
        P.append(vh.T @ torch.diag(alpha * energy / ((alpha - 1) * energy + 1)) @ vh)
    want = trained[5].weight.double() @ (torch.eye(64) - P[0] + P[1] @ P[0])
    torch.testing.assert_close(new[5].weight.double(), want, atol=1e-5, rtol=1e-4)


class TestCommand:
    FAST = ("--model", "mlp", "--train", "--epochs", "4", "--data", "digits")

    def test_unlearn_measures_and_writes(self, tmp_path, capsys):
        out = tmp_path / "new.safetensors"
        argv = ["vision", "unlearn", *self.FAST, "--forget", "class:3", "--out", str(out), "--json"]
        assert main(argv) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["after"]["UA"] > 90 > report["before"]["UA"] and report["method"] == "rayleigh"
        x = load_data("digits").test_x
        assert logits(load_model(f"mlp:{out}", 10, 1), x).shape == (len(x), 10)
        assert main(argv) == 2 and "exists" in capsys.readouterr().err
        assert main([*argv[:-3], "--dry-run"]) == 0
        assert "samples to forget" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["unlearn", "--model", "mlp", "--forget", "class:3"], "mlp is untrained"),
            (["unlearn", "--model", "nowhere", "--forget", "class:3"], "no model 'nowhere'"),
            (["unlearn", "--model", "mlp", "--train", "--data", "x.npz", "--forget", "class:3"], "cannot read x.npz"),
            (
                ["unlearn", "--model", "mlp", "--train", "--forget", "class:3", "--option", "rnk=2"],
                "has no option 'rnk'",
            ),
            (["unlearn", "--model", "mlp", "--train", "--forget", "class:3", "--option", "rank"], "key=value"),
            (["fly"], "no action 'fly'"),
            (["table", "class-wise", "--model", "mlp", "--classes", "x", "--out", "o"], "--classes such as"),
        ],
    )
    def test_wrong_use(self, argv, message, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["vision", *argv]) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.strip().splitlines()) == 1

    def test_methods_are_listed(self, capsys):
        assert main(["vision", "methods", "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)) == set(METHODS)

    def test_a_table_is_resumed(self, tmp_path, capsys):
        argv = ["vision", "table", "class-wise", *self.FAST, "--classes", "3", "--method", "rayleigh", "--method",
                "mask", "--no-retrain", "--out", str(tmp_path)]  # fmt: skip
        assert main(argv) == 0
        first = json.loads((tmp_path / "class-wise.json").read_text())
        assert [r["row"] for r in first] == ["original", "rayleigh", "mask"] and first[2]["mean"]["UA"] == 100
        (journal,) = tmp_path.glob("*.jsonl")
        lines = journal.read_text().splitlines()
        journal.write_text("\n".join([*lines[:2], lines[2][:40]]))  # the last line was cut
        assert main(argv) == 0
        again = json.loads((tmp_path / "class-wise.json").read_text())
        drop = lambda rows: [{k: v for k, v in r["mean"].items() if k != "seconds"} for r in rows]  # noqa: E731
        assert drop(again) == drop(first)
        assert (tmp_path / "class-wise.png").stat().st_size > 1000


def test_a_method_that_does_not_apply_costs_its_row_alone(digits, tmp_path):
    from erase_sd.vision.tables import markdown

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    setting = Setting(digits, lambda seed: model, "digits", False, "linear")
    rows = run("class-wise", setting, tmp_path, methods=["affine", "unlink"], classes=[0], seeds=1)
    assert [bool(r["mean"]) for r in rows] == [True, False, True]
    assert "affine: 1 has no bias" in "\n".join(markdown(rows))


def test_another_model_of_the_same_name_is_measured_anew(digits, trained, tmp_path):
    a, b_ = trained, unlearn(trained, make_task(digits, "class:5")).model
    rows = [run("class-wise", Setting(digits, lambda seed, m=m: m, "digits", False, "same", identity), tmp_path,
                methods=["mask"], classes=[5], seeds=1) for m, identity in ((a, "first"), (b_, "second"))]  # fmt: skip
    assert rows[0][0]["mean"]["UA"] < 10 < 90 < rows[1][0]["mean"]["UA"]


@pytest.mark.parametrize("table", ["multi-class", "random", "shots", "ranks", "external", "layers", "gf"])
def test_every_table_has_cases(digits, table):
    found = cases(table, digits, methods=["rayleigh", "unlink", "mask"], classes=[0, 1], seeds=2)
    assert len({c.row for c in found}) >= 2 and {c.seed for c in found} == {0, 1}


def test_incremental_and_depoison_tables(digits, trained, tmp_path):
    setting = Setting(digits, lambda seed: trained, "digits", False, "mlp digits")
    rows = run("incremental", setting, tmp_path, methods=[], classes=[0, 1, 2, 3], seeds=1)
    assert [r["row"] for r in rows] == [f"PGU after {i}" for i in (1, 2, 3, 4)]
    assert rows[-1]["mean"]["D_f error"] > 70 and rows[-1]["mean"]["D_test error"] < 30


def test_headed_gives_the_same_numbers(digits, trained, task):
    head, features = headed(trained, digits)
    a = unlearn(trained, task).model
    b_ = unlearn(head, make_task(features, "class:3")).model
    torch.testing.assert_close(logits(a, digits.test_x), logits(b_, features.test_x), atol=1e-4, rtol=1e-4)


def test_emoji_clip_forgets_an_object():
    data = load_data("emoji")
    t = make_task(data, "class:pizza")
    t = Task(t.forget, t.retain.sample(300), t.test.sample(200), t.test_forget, t.classes, t.outputs, t.name)
    model = load_model("emoji-clip", len(data.classes))
    new = unlearn(model, t).model
    assert accuracy(model, t.forget) > 80 and accuracy(new, t.forget) < 10
    assert accuracy(new, t.test) > accuracy(model, t.test) - 5


@pytest.mark.parametrize("table", ["incremental", "depoison"])
def test_a_table_leaves_the_original_as_it_was(table, tmp_path, digits, monkeypatch):
    from erase_sd.vision import tables
    from erase_sd.vision.data import Data

    few = torch.arange(0, len(digits.train_y), 8)
    small = Data("digits", digits.train_x[few], digits.train_y[few], digits.test_x, digits.test_y, digits.classes)
    model = build("mlp", 10, 1, seed=0)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    setting = tables.Setting(small, lambda seed: model, "digits mlp", True, "mlp digits")
    tables.run(table, setting, tmp_path, methods=[], classes=[0], seeds=1)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_a_cache_on_disk_stands_for_the_data(trained, task, digits, tmp_path):
    whole = pgu.Cache.of(trained, Samples(digits.train_x, digits.train_y))
    path = whole.save(tmp_path / "cache.safetensors", trained)
    again = pgu.Cache.load(path, trained)
    for name, pairs in whole.bases.items():
        for (U, s), (V, t) in zip(pairs, again.bases[name], strict=True):
            assert torch.equal(U, V)
            assert torch.equal(s, t)
    blind = Task(task.forget, task.retain.sample(1), task.test, task.test_forget, task.classes, 10, "class")
    kept = accuracy(unlearn(trained, blind, "pgu", cache=again, epochs=20).model, task.retain)
    assert kept > 97  # one retained sample was there to be read, and it was not enough to know that
    with pytest.raises(ValueError, match="another model"):
        pgu.Cache.load(path, build("mlp", 10, 1, seed=5))
    path.write_bytes(b"x" * 50)
    with pytest.raises(ValueError, match="damaged"):
        pgu.Cache.load(path, trained)
    with pytest.raises(ValueError, match="no such cache"):
        pgu.Cache.load(tmp_path / "none", trained)


def test_the_command_makes_a_cache_once(tmp_path, capsys):
    words = [
        "vision",
        "unlearn",
        "--model",
        "mlp",
        "--train",
        "--epochs",
        "3",
        "--forget",
        "class:3",
        "--method",
        "pgu",
    ]
    path = tmp_path / "c.safetensors"
    assert main([*words, "--cache", str(path), "--json"]) == 0
    first, made = capsys.readouterr().out, path.stat().st_mtime_ns
    assert main([*words, "--cache", str(path), "--json"]) == 0
    assert path.stat().st_mtime_ns == made
    after = [json.loads(text)["after"] for text in (first, capsys.readouterr().out)]
    assert after[0] == after[1]
    assert main([*words[:-1], "rl", "--cache", str(path)]) == 2


def test_two_processes_gather_the_moments_of_one(tmp_path):
    import os
    import subprocess
    import sys

    script = tmp_path / "gather.py"
    script.write_text(
        "import sys, torch\n"
        "from accelerate import PartialState\n"
        "from erase_sd.vision import build, load_data\n"
        "from erase_sd.vision.layers import collect, gathered, layers\n"
        "state = PartialState(cpu=True)\n"
        "model, x = build('mlp', 10, 1, seed=0).eval(), load_data('digits').train_x[:100]\n"
        "own = x[state.process_index :: state.num_processes]\n"
        "found = gathered(collect(model, layers(model, 'all'), own))\n"
        "alone = collect(model, layers(model, 'all'), x)\n"
        "assert state.num_processes == 2\n"
        "for name, groups in alone.items():\n"
        "    for a, b in zip(groups, found[name]):\n"
        "        torch.testing.assert_close(a.gram, b.gram, atol=1e-9, rtol=1e-9)\n"
        "        assert a.count == b.count\n"
        "state.wait_for_everyone()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
