"""PGU: the cache, the projection, the stops, wrong labels."""

import copy

import pytest
import torch

from erase_sd.algebra.moments import SecondMoment
from erase_sd.vision import Cache, Recipe, Samples, Task, build, make_task, measure, unlearn
from erase_sd.vision.features import collect
from erase_sd.vision.layers import layers
from erase_sd.vision.methods.pgu import Projected, Recombined, incremental, remaining
from erase_sd.vision.train import accuracy, logits, train


@pytest.fixture(scope="module")
def whole(trained, digits):
    return Cache.of(trained, Samples(digits.train_x, digits.train_y))


def test_cache_less_the_forgotten_is_the_retained(trained, task, whole):
    left = remaining(trained, task, whole).moments
    direct = collect(trained, layers(trained), task.retain.x)
    for name, groups in left.items():
        scale = float(direct[name][0].gram.abs().max())
        torch.testing.assert_close(groups[0].gram, direct[name][0].gram, atol=1e-8 * scale, rtol=0)
        assert groups[0].count == direct[name][0].count


def test_a_difference_that_is_indefinite_loses_its_negative_part():
    few, many = (SecondMoment.of(torch.diag(torch.tensor(v))) for v in ([1.0, 2.0], [2.0, 1.0]))
    left = Cache({"a": [few]}).without({"a": [many]}).moments["a"][0]
    torch.testing.assert_close(left.gram, torch.diag(torch.tensor([0.0, 3.0])).double())


def test_projected_steps_leave_retained_features_alone(trained, task):
    spaces = Cache.of(trained, task.retain).spaces(0.99, "sigma2")
    projected = Projected(trained, spaces)
    torch.manual_seed(0)
    gradients = [torch.randn_like(p) for p in projected.parameters]
    for layer, g in zip(projected.layers, projected.project(gradients), strict=True):
        M = spaces[layer.name][0].float()
        assert (g @ M).abs().max() < 1e-4
        twice = projected.project(
            [g if y is layer else torch.zeros_like(y.weight) for y in projected.layers]
        )
        torch.testing.assert_close(twice[projected.layers.index(layer)], g, atol=1e-5, rtol=1e-4)


def test_spaces_take_the_smallest_enough():
    gram = torch.diag(torch.tensor([16.0, 9, 4, 1])).double()
    cache = Cache({"a": [SecondMoment.summed(gram, torch.zeros(4).double(), 1.0)]})
    assert [cache.spaces(g)["a"][0].shape[1] for g in (0.4, 0.41, 0.7, 1.0)] == [1, 2, 2, 4]
    assert cache.spaces(0.5, "sigma2")["a"][0].shape[1] == 1
    with pytest.raises(ValueError, match="sigma or sigma2"):
        cache.spaces(0.5, "trace")


def test_it_forgets_a_class_to_chance_and_reads_nothing_retained(trained, task, whole):
    """From the cache alone: what the task retains is noise."""
    noise = Samples(torch.randn(4, 1, 8, 8), task.retain.y[:4])
    blind = Task(task.forget, noise, task.test, task.test_forget, task.classes, 10, "blind")
    result = unlearn(trained, blind, "pgu", cache=whole)
    new = result.model
    kept = remaining(trained, task, whole).spaces(0.9, "sigma2")
    told = {n: f"{M.shape[1]}/{len(M)}" for n, (M,) in kept.items()}
    assert result.options["protected"] == told and told["1"].endswith("/64")
    after = measure(new, task)
    assert after["UA"] >= 90 and after["RA"] > 90
    want = unlearn(trained, task, "pgu").model
    torch.testing.assert_close(
        logits(new, task.test.x), logits(want, task.test.x), atol=1e-2, rtol=1e-2
    )


def test_one_step_is_its_formula(tiny):
    """Loss, gradient, projection and step written out on the first layer."""
    model, task = tiny
    got = unlearn(model, task, "pgu", gamma=0.5, epochs=1, lr=0.3, entropy=0.4, floor=0.1).model
    net = copy.deepcopy(model)
    p = net(task.forget.x).softmax(1)
    entropy = -(p * p.log()).sum(1)
    value = -(1 - p[:, 0] + 0.1).log().mean() - 0.4 * entropy.mean()
    (g,) = torch.autograd.grad(value, net[0].weight)
    _, s, vh = torch.linalg.svd(task.retain.x, full_matrices=False)
    k = int(((s**2).cumsum(0) < 0.5 * (s**2).sum()).sum()) + 1
    M = vh[:k].T
    torch.testing.assert_close(
        got[0].weight, model[0].weight - 0.3 * (g - g @ M @ M.T), atol=1e-6, rtol=1e-5
    )
    assert torch.equal(got[0].bias, model[0].bias)


class TestSeveralDeletions:
    def parts(self, digits):
        tasks = []
        for c in (0, 1):
            t = make_task(digits, f"class:{c}")
            tasks.append(Task(t.forget, t.forget, t.test, t.test_forget, t.classes, 10, t.name))
        return tasks

    def test_incremental_needs_no_retained_sample(self, trained, digits, whole):
        model, left = incremental(trained, self.parts(digits), whole)
        both = make_task(digits, "class:0,1")
        assert accuracy(model, both.forget) < 25 and accuracy(model, both.test) > 75
        assert set(left.moments) == set(whole.moments)
        gone = len(both.forget)
        assert left.moments["1"][0].count == whole.moments["1"][0].count - gone

    def test_a_reduced_cache_on_disk_belongs_to_the_new_model(
        self, trained, digits, whole, tmp_path
    ):
        first, second = self.parts(digits)
        new = unlearn(trained, first, "pgu", cache=whole).model
        path = remaining(trained, first, whole).save(tmp_path / "left.safetensors", new)
        again = Cache.load(path, new)
        after = unlearn(new, second, "pgu", cache=again).model
        both = make_task(digits, "class:0,1")
        assert accuracy(after, both.forget) < 25 and accuracy(after, both.test) > 75
        with pytest.raises(ValueError, match="another model"):
            Cache.load(path, trained)


def test_files(trained, whole, tmp_path):
    path = whole.save(tmp_path / "cache.safetensors", trained)
    again = Cache.load(path, trained)
    for name, groups in whole.moments.items():
        for a, b in zip(groups, again.moments[name], strict=True):
            assert (
                torch.equal(a.gram, b.gram) and torch.equal(a.total, b.total) and a.count == b.count
            )
    path.write_bytes(b"x" * 50)
    with pytest.raises(ValueError, match="damaged"):
        Cache.load(path, trained)
    with pytest.raises(ValueError, match="no such cache"):
        Cache.load(tmp_path / "none", trained)


def test_single_samples_stop_at_unseen_ones(trained, digits):
    """Forgotten samples end no better known than unseen ones, and the rest stays."""
    t = make_task(digits, "random:0.05", seed=1)
    assert t.validation is not None and len(t.validation) + len(t.test) == len(digits.test_y)
    new = unlearn(trained, t, "pgu").model
    assert (
        accuracy(new, t.forget) <= accuracy(new, t.validation) + 3 and accuracy(new, t.retain) > 88
    )
    with pytest.raises(ValueError, match="needs unseen samples"):
        unlearn(trained, Task(t.forget, t.retain, t.test, t.test_forget, (), 10, "x"), "pgu")


def test_what_recombining_learnt_is_what_is_written(trained, task):
    """The last layer answers the same before and after its block is baked, whatever the block."""
    new = copy.deepcopy(trained)
    free = Recombined()
    layer = layers(new, "last", task.forget.x)[0]
    (block,) = free.attach(layer, Cache.of(new, task.retain).spaces(0.99)[layer.name][0])
    with torch.no_grad():
        block.copy_(torch.randn(block.shape, generator=torch.Generator().manual_seed(0)))
    before = logits(new, task.test.x)
    free.bake()
    torch.testing.assert_close(logits(new, task.test.x), before, atol=1e-3, rtol=1e-3)
    assert (before - logits(trained, task.test.x)).abs().max() > 0.1


def test_depoisoning_of_half_the_labels_at_its_defaults(digits):
    """Five pairs of classes with half of their labels flipped, all of them known.

    The paper's hardest budget.
    """
    torch.manual_seed(0)
    order = torch.randperm(10)
    partner = torch.empty(10, dtype=torch.long)
    partner[order[:5]], partner[order[5:]] = order[5:], order[:5]
    bad = torch.zeros(len(digits.train_y), dtype=torch.bool)
    bad[torch.randperm(len(bad))[: len(bad) // 2]] = True
    y = torch.where(bad, partner[digits.train_y], digits.train_y)
    poisoned = Samples(digits.train_x, y)
    test = Samples(digits.test_x, digits.test_y)
    model = train(build("mlp", 10, 1), poisoned, Recipe(epochs=40))
    none = test[torch.zeros(len(test), dtype=torch.bool)]
    t = Task(
        poisoned[bad], poisoned[~bad], test, none, (), 10, "poison", corrected=digits.train_y[bad]
    )
    before = accuracy(model, test)
    after = accuracy(unlearn(model, t, "depoison").model, test)
    first = max(
        accuracy(unlearn(model, t, "first-order", tau=tau).model, test)
        for tau in (1e-4, 1e-3, 1e-2)
    )
    assert before < 70 and after > 85 and after > first
