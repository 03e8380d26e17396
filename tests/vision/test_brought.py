"""Models that users bring: each method takes them or refuses them by name; 224 px in portions."""

import pytest
import torch
from torch import nn

from erase_sd.vision import METHODS, Pictures, Samples, Task, build, unlearn
from erase_sd.vision import samples as portioning
from erase_sd.vision.features import collect
from erase_sd.vision.layers import in_order, layers
from erase_sd.vision.methods.retrain import reset
from erase_sd.vision.pretrained import Logits, ZeroShot
from erase_sd.vision.train import Recipe, logits, train
from tests.vision.helpers import same, swin

QUICK = {
    "retrain": {"epochs": 2},  # the rate of the first step is zero
    **dict.fromkeys(("ft", "rl", "salun", "l1", "ga", "be", "bs"), {"epochs": 1}),
    "eu-k": {"epochs": 1},
    "pgu": {"epochs": 1, "gamma": 0.5},
    "depoison": {"epochs": 1, "gamma": 0.5},
    "jit": {"draws": 1},
    "scrub": {"epochs": 1},
    "ssd": {"alpha": 1.0},
    "ntk": {"samples": 4, "iterations": 2, "scale": 3.0},
    "second-order": {"iterations": 2},
    "iu": {"samples": 3},
    "gf": {"alphas_retain": (10,), "alphas_forget": (3,), "layers": "last"},
}
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"image_size": 8, "patch_size": 4, "intermediate_size": 32}


def clip():
    from transformers import CLIPConfig, CLIPModel

    text = TOWER | {"intermediate_size": 32, "vocab_size": 9, "max_position_embeddings": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=TOWER | IMAGE, projection_dim=8)
    return ZeroShot(CLIPModel(config), torch.randn(3, 8))


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_stages=2, hidden_sizes=[4, 8], depths=[1, 1], patch_size=2, num_labels=3
    )
    return Logits(ConvNextForImageClassification(config))


class Encoder(nn.Module):
    """Patches, two of torch's own transformer layers, a classifier."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 2
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Pooled(nn.Module):
    """Patches, and a query that attends to them, as SigLIP's pooling does."""

    def __init__(self, inner=8):
        super().__init__()
        self.patches = nn.Conv2d(3, inner, 4, 4)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.pool = nn.MultiheadAttention(8, 2, kdim=inner, vdim=inner, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.pool(self.query.expand(len(x), -1, -1), tokens, tokens)[0][:, 0])


MODELS = {"swin": swin, "clip": clip, "convnext": convnext, "torch's attention": Encoder}
REFUSED = {
    ("clip", "affine"): "projection has no bias",
    ("clip", "be"): "projection does not give one output for each class",
    ("clip", "retrain"): "zero-shot CLIP has no training set here",
}


@pytest.fixture
def few(pictures_task):
    """Nine of the samples."""
    x = torch.cat([pictures_task.forget.x[:3], pictures_task.retain.x[:6]])
    whole = Samples(x, torch.cat([pictures_task.forget.y[:3], pictures_task.retain.y[:6]]))
    forget, retain = whole[:3], whole[3:]
    return Task(forget, retain, retain, forget, (0,), 3, "class:0")


@pytest.mark.parametrize("name", MODELS)
def test_every_method_takes_what_users_bring_or_refuses_it_by_name(name, few):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x = torch.cat([few.forget.x, few.retain.x])
    before = logits(model, x)
    for method in METHODS:
        if (name, method) in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[name, method]):
                unlearn(model, few, method)
            continue
        after = logits(unlearn(model, few, method, **QUICK.get(method, {})).model, x)
        assert not torch.isnan(after).any() and not torch.equal(after, before), method
    assert torch.equal(logits(model, x), before)


class TestAttentionToSomethingElse:
    @pytest.mark.parametrize("inner", [8, 6])
    def test_it_may_stand_in_a_model_whose_other_layers_are_edited(self, inner, few):
        """Also where keys have another width, and the projections are three weights."""
        torch.manual_seed(0)
        model = Pooled(inner).eval()
        ran = [y.name for y in in_order(model, few.forget.x)]
        assert ran == ["patches", "pool", "pool.out_proj", "head"]
        new = unlearn(model, few).model
        assert not torch.equal(new.head.weight, model.head.weight)
        for method, options in (("rayleigh", {"layers": "all"}), ("pgu", {}), ("gf", {})):
            with pytest.raises(ValueError, match=r"pool .* expected layers without it"):
                unlearn(model, few, method, **options)

    def test_two_sided_needs_each_sample_once(self, few):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(192, 192), nn.Linear(192, 3)

            def forward(self, x):
                return self.head(self.body(self.body(x.flatten(1)).relu()))

        with pytest.raises(ValueError, match="body does not read each sample once"):
            unlearn(Twice(), few, "two-sided", layers="body")


def test_torchs_attention_is_drawn_anew():
    torch.manual_seed(0)
    model = Encoder()
    a, b = reset(model, seed=1), reset(model, seed=1)
    old = dict(model.named_parameters())
    assert same(a, b) and not torch.equal(
        a.encoder.layers[0].self_attn.in_proj_weight,
        old["encoder.layers.0.self_attn.in_proj_weight"],
    )


def test_a_group_that_reads_nothing_retained_is_free_to_forget():
    """A depthwise channel that only the forget samples light up."""
    torch.manual_seed(0)
    x = torch.randn(12, 2, 6, 6)
    x[6:, 1] = 0
    whole = Samples(x, torch.arange(12) // 6)
    task = Task(whole[:6], whole[6:], whole[6:], whole[:6], (0,), 2, "class:0")
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    ).eval()
    new = unlearn(model, task, layers="0").model
    first = next(y for y in layers(model) if y.name == "0")
    gone = collect(model, [first], task.forget.x)["0"][1]
    _, vectors = torch.linalg.eigh(gone.gram)
    u = vectors[:, -1].float()
    W, left = (m[0].weight[1].reshape(-1) for m in (model, new))
    torch.testing.assert_close(left, W - (W @ u) * u, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2), (4, 2, 11, 9)),
        (nn.Conv2d(2, 2, (3, 1), padding="same", groups=2), (4, 2, 5, 6)),
        (nn.Linear(5, 2), (4, 7, 5)),
    ],
)
def test_rows_of_each_input_are_counted_before_they_are_made(module, shape):
    (layer,) = layers(module)
    x = torch.randn(shape)
    rows = sum(len(chunk[0]) for chunk in layer.rows(x))
    assert rows == layer.places(x) * len(x)


class TestPortions:
    """Large inputs run a few at a time, and nothing else changes."""

    @pytest.mark.parametrize(
        "method",
        ["ga", "l1", "jit", "scrub", "pgu", "depoison", "ntk", "second-order", "ssd", "iu", "gf"],
    )
    def test_the_result_is_that_of_one_batch(self, method, few, monkeypatch):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        parts = (few.forget, few.retain, few.test, few.test_forget)
        task = Task(*(Samples(p.x.double(), p.y) for p in parts), (0,), 3, "class:0")
        options = QUICK.get(method, {}) | ({"noise": 1e-9} if method == "jit" else {})
        whole = unlearn(model, task, method, **options).model
        monkeypatch.setattr(portioning, "AT_ONCE", 2 * 192)
        assert portioning.at_once(task.forget.x, 256) == 2
        portions = unlearn(model, task, method, **options).model
        tight = {"atol": 1e-3, "rtol": 1e-3} if method == "ntk" else {"atol": 1e-6, "rtol": 1e-5}
        for a, b in zip(whole.parameters(), portions.parameters(), strict=True):
            torch.testing.assert_close(a, b, **tight)

    def test_two_sided_leaves_out_places_where_a_layer_reads_too_many(self, few):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
        ).eval()
        every, some = (
            unlearn(model, few, "two-sided", layers="0", rows=n).model for n in (10**6, 1600)
        )
        assert not same(every, model) and not same(some, model) and not same(every, some)
        shift = [(m[0].weight - model[0].weight).flatten() for m in (every, some)]
        assert torch.cosine_similarity(*shift, dim=0) > 0.5

    def test_a_batch_that_takes_one_sample_more_stays_whole(self):
        """Batch norm would see two halves otherwise."""
        model, sizes = nn.Linear(3, 2), []
        model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        train(model, Samples(torch.randn(9, 3), torch.arange(9) % 2), Recipe(epochs=1, batch=4))
        assert sizes == [4, 5]

    def test_a_single_image_is_never_left_to_batch_norm(self, monkeypatch):
        """Portions are of about equal size."""
        monkeypatch.setattr(portioning, "AT_ONCE", 3 * 192)
        pictures = Pictures(list(range(7)), lambda i: torch.full((8, 8, 3), i).byte().numpy())
        model = build("resnet20", 2)
        train(model, Samples(pictures, torch.arange(7) % 2), Recipe(epochs=1, batch=7))
        assert torch.isfinite(model.bn1.running_mean).all()
