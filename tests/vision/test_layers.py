"""Features are what the weights read, and edits of weights are edits of features."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.algebra.methods import unlink
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem
from erase_sd.vision import unlearn
from erase_sd.vision.features import collect
from erase_sd.vision.layers import Layer, edited, in_order, layers
from erase_sd.vision.pretrained import Logits
from erase_sd.vision.train import logits
from tests.vision.helpers import same


@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
)
def test_unfolding_is_the_convolution(kernel, stride, padding, dilation, groups, seed, mode):
    torch.manual_seed(seed)
    conv = nn.Conv2d(
        4, 8, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode
    ).double()
    x = torch.randn(3, 4, 9, 7).double()
    layer = Layer("conv", conv)
    parts = [torch.cat(chunks) for chunks in zip(*layer.rows(x), strict=True)]
    out = torch.cat([rows @ w.T for rows, w in zip(parts, layer.matrices(), strict=True)], dim=1)
    want = conv(x)
    torch.testing.assert_close(out.reshape(3, -1, 8).transpose(1, 2).reshape(want.shape), want)


def test_same_padding_and_depthwise():
    conv = nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=6, bias=False).double()
    x = torch.randn(2, 6, 8, 8).double()
    layer = Layer("conv", conv)
    assert layer.groups == 6 and layer.width == 9
    (parts,) = layer.rows(x)
    out = torch.cat([rows @ w.T for rows, w in zip(parts, layer.matrices(), strict=True)], dim=1)
    torch.testing.assert_close(out.reshape(2, 64, 6).transpose(1, 2).reshape(2, 6, 8, 8), conv(x))


def test_an_edit_of_the_weight_is_an_edit_of_the_features():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(100, 3)
    ).double()
    edits = [LowRankEdit(torch.randn(9, 2), torch.randn(9, 2)) for _ in range(2)]
    new = edited(model, {"0": edits})
    layer, x = layers(model, "0")[0], torch.randn(5, 2, 5, 5).double()
    (parts,) = layer.rows(x)
    moved = [
        e.apply_to_features(r) @ w.T for e, r, w in zip(edits, parts, layer.matrices(), strict=True)
    ]
    out = (
        torch.cat(moved, 1).reshape(5, 25, 4).transpose(1, 2).reshape(5, 4, 5, 5)
        + model[0].bias[:, None, None]
    )
    torch.testing.assert_close(new[0](x), out)
    assert torch.equal(new[2].weight, model[2].weight)


def test_moments_stream_and_merge(trained, digits):
    chosen, x = layers(trained), digits.train_x[:200]
    whole = collect(trained, chosen, x, batch=200)
    parts = collect(trained, chosen, x[:70], batch=7), collect(trained, chosen, x[70:], batch=64)
    for name in whole:
        merged = parts[0][name][0] + parts[1][name][0]
        torch.testing.assert_close(merged.gram, whole[name][0].gram, rtol=1e-5, atol=1e-5)


def test_a_limit_of_rows_keeps_an_even_share():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3)
    x = torch.randn(30, 1, 10, 10)  # 64 rows each
    few = collect(conv, layers(conv), x, batch=10, limit=300)[""][0]
    assert few.count == 300
    whole = collect(conv, layers(conv), x)[""][0]
    torch.testing.assert_close(few.matrix, whole.matrix, atol=0.25, rtol=0.3)


class TestAttention:
    def block(self):
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0).eval()

    def test_its_input_projection(self):
        layer = self.block()
        names = [y.name for y in layers(layer)]
        assert names == ["self_attn", "self_attn.out_proj", "linear1", "linear2"]
        x = torch.randn(4, 5, 8)
        rows = collect(layer.train(), layers(layer, "self_attn"), x)["self_attn"][0]
        torch.testing.assert_close(
            rows.gram, x.reshape(-1, 8).double().T @ x.reshape(-1, 8).double()
        )
        edit = unlink.solve(Problem(rows, SecondMoment.zeros(8)), unlink.Options(2))
        new = edited(layer, {"self_attn": [edit]})
        want = layer.self_attn.in_proj_weight @ edit.matrix.float()
        torch.testing.assert_close(new.self_attn.in_proj_weight, want, atol=1e-6, rtol=1e-4)

    def test_its_output_projection_is_seen_though_torch_never_calls_it(self):
        """`out_proj` reads the heads' mixtures: written out by hand from the projections."""
        attention = self.block().self_attn
        x = torch.randn(3, 5, 8)
        q, k, v = (
            attention.in_proj_weight @ x.transpose(1, 2) + attention.in_proj_bias[:, None]
        ).chunk(3, 1)
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            scores = (q[:, part].transpose(1, 2) @ k[:, part] / 2).softmax(-1)
            heads.append(scores @ v[:, part].transpose(1, 2))
        context = torch.cat(heads, -1).reshape(-1, 8).double()

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = attention

            def forward(self, x):
                return self.attention(x, x, x, need_weights=False)[0]

        model = Model()
        found = collect(model, layers(model, "attention.out_proj"), x)["attention.out_proj"][0]
        assert found.count == 15
        torch.testing.assert_close(found.gram, context.T @ context, atol=1e-5, rtol=1e-4)
        edit = unlink.solve(Problem(found, SecondMoment.zeros(8)), unlink.Options(1))
        new = edited(model, {"attention.out_proj": [edit]})
        want = (
            context.float() @ edit.matrix.float().T
        ) @ attention.out_proj.weight.T + attention.out_proj.bias
        torch.testing.assert_close(new(x).reshape(-1, 8), want, atol=1e-5, rtol=1e-4)

    def test_attention_to_something_else_is_refused(self):
        class Cross(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

            def forward(self, x):
                return self.attention(x, x + 1, x + 1)[0]

        model = Cross()
        with pytest.raises(ValueError, match="only self-attention"):
            collect(model, layers(model), torch.randn(2, 3, 4))


def test_selection(trained, digits):
    assert [y.name for y in layers(trained, ["1", "3"])] == ["1", "3"]
    with pytest.raises(ValueError, match="no layer matches nothing; there are 1, 3, 5"):
        layers(trained, "nothing")
    with pytest.raises(ValueError, match="which layers are 'last'"):
        layers(trained, "last")


class HeadFirst(nn.Module):
    """Declares its classifier before its body."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()
        )
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.body(x))


def test_the_last_layer_is_the_last_that_runs():
    model, x = HeadFirst(), torch.randn(2, 12)
    assert [y.name for y in in_order(model, x)] == ["body.1", "body.3", "head"]
    assert [y.name for y in layers(model, "last", x)] == ["head"]
    assert [y.name for y in layers(model, "middle", x)] == ["body.3"]


def test_a_transformers_vit(vit, pictures_task):
    model = Logits(vit)
    for select in ("last", "*q_proj", "*attention*"):
        new = unlearn(model, pictures_task, "rayleigh", layers=select).model
        assert not same(new, model) and torch.isfinite(logits(new, pictures_task.test.x)).all()
