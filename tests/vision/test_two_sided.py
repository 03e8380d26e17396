"""Two-sided edits: the normal equations, and what they leave alone."""

import pytest
import torch
from torch import nn

from erase_sd.vision import Samples, Task, make_task, unlearn
from erase_sd.vision.methods.two_sided import Rows, TwoSided, change
from erase_sd.vision.networks import BasicBlock
from erase_sd.vision.train import accuracy, logits


def test_it_is_the_least_squares_of_both_wishes():
    """Against `lstsq` on stacked rows.

    Retained ones with their outputs, forgotten with their neighbours' mean.
    """
    torch.manual_seed(0)
    W = torch.randn(4, 6)
    kept, gone = (
        Rows(torch.randn(30, 3, 6), torch.arange(30) % 3),
        Rows(torch.randn(20, 3, 6), torch.arange(20) % 3),
    )
    options = TwoSided(mu=2.0, epsilon=1e-9)
    got = W.double() + change(W, kept, gone, options)
    means = torch.stack([kept.x[kept.y == j].mean(0) for j in range(3)])  # (class, place, d)
    target = means[gone.y] @ W.T
    rows = torch.cat([kept.x.reshape(-1, 6) / 90**0.5, 2**0.5 * gone.x.reshape(-1, 6) / 60**0.5])
    outs = torch.cat(
        [kept.x.reshape(-1, 6) @ W.T / 90**0.5, 2**0.5 * target.reshape(-1, 4) / 60**0.5]
    )
    want = torch.linalg.lstsq(rows.double(), outs.double()).solution.T
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_right_and_left_side_are_its_two_terms():
    """`W T + μ E[m xᵀ] K⁻¹`, with `T = I − μ C_f K⁻¹`."""
    torch.manual_seed(1)
    W = torch.randn(4, 6)
    kept, gone = (
        Rows(torch.randn(30, 1, 6), torch.zeros(30)),
        Rows(torch.randn(20, 1, 6), torch.zeros(20)),
    )
    options = TwoSided(mu=3.0, epsilon=0.1)
    C_r, C_f = kept.second(), gone.second()
    K = C_r + 3 * C_f
    K = K + 0.1 * K.trace() / 6 * torch.eye(6)
    m = (kept.x.mean(0) @ W.T).expand(20, 4).double()
    T = torch.eye(6) - 3 * C_f @ torch.linalg.inv(K)
    left = 3 * (m.T @ gone.x[:, 0].double() / 20) @ torch.linalg.inv(K)
    torch.testing.assert_close(
        W.double() + change(W, kept, gone, options), W.double() @ T + left, atol=1e-5, rtol=1e-4
    )


def test_features_that_the_forgotten_do_not_share_stay():
    """Forgotten rows in one half of the space, retained in the other: no retained output moves."""
    torch.manual_seed(2)
    x = torch.zeros(60, 8)
    y = torch.arange(60) % 3
    x[y == 0, :4] = torch.randn(20, 4)
    x[y != 0, 4:] = torch.randn(40, 4)
    model = nn.Linear(8, 3)
    whole = Samples(x, y)
    t = Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "class:0")
    result = unlearn(model, t, "two-sided", epsilon=1e-9)
    assert result.options["layers"] == ("",)
    torch.testing.assert_close(
        logits(result.model, t.retain.x), logits(model, t.retain.x), atol=1e-5, rtol=1e-4
    )
    assert (logits(result.model, t.forget.x) - logits(model, t.forget.x)).abs().max() > 0.1


def test_it_forgets_a_class_and_edits_two_layers(trained, task, digits):
    result = unlearn(trained, task, "two-sided")
    assert result.options["layers"] == ("3", "5")
    assert torch.equal(result.model[1].weight, trained[1].weight)
    assert accuracy(result.model, task.forget) < 10 and accuracy(result.model, task.retain) > 98
    with pytest.raises(ValueError, match="sends whole classes elsewhere"):
        unlearn(trained, make_task(digits, "random:0.1"), "two-sided")


def test_what_a_shortcut_carries_past_a_layer_is_made_up_for():
    """The sum that the next layer reads goes to the neighbours' mean, not the layer's own part."""
    torch.manual_seed(3)
    block = BasicBlock(4, 4, 1, option="A").eval()
    block.bn2.weight.data.uniform_(0.5, 2.0)
    block.bn2.running_var.uniform_(0.5, 2.0)
    model = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.randn(90, 4, 5, 5), torch.arange(90) % 3
    x[y == 0, 0] += 3.0  # the shortcut alone would tell the class
    whole = Samples(x, y)
    t = Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "class:0")
    new = unlearn(model, t, "two-sided", layers="0.conv2", mu=1e6, epsilon=1e-9).model

    def sums(net, samples):
        part = net[0]
        inner = part.bn2(part.conv2(torch.relu(part.bn1(part.conv1(samples.x)))))
        return (inner + part.skip(samples.x)).detach()

    guess = logits(model, t.forget.x).index_fill(1, torch.tensor([0]), -torch.inf).argmax(1)
    wish = torch.stack([sums(model, t.retain)[t.retain.y == int(j)].mean(0) for j in guess])
    before, after = ((sums(net, t.forget) - wish)[:, 0].mean() for net in (model, new))
    assert before > 2.5 and after.abs() < 0.15 * before
    torch.testing.assert_close(block.skip(x), x)


def test_convolutions_and_groups(pictures_task):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, groups=3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    new = unlearn(model, pictures_task, "two-sided", layers="all").model
    assert not torch.equal(new[0].weight, model[0].weight) and torch.equal(
        new[0].bias, model[0].bias
    )
    assert torch.isfinite(logits(new, pictures_task.test.x)).all()
