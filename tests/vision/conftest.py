import pytest
import torch
from torch import nn

from erase_sd.vision import Recipe, Samples, Task, build, load_data, make_task
from erase_sd.vision.train import train


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture(scope="session")
def trained(digits):
    """A small network that knows the digits."""
    whole = Samples(digits.train_x, digits.train_y)
    return train(build("mlp", 10, 1), whole, Recipe(epochs=25))


@pytest.fixture(scope="session")
def task(digits):
    return make_task(digits, "class:3")


@pytest.fixture
def tiny():
    """A two-layer network and ten samples for references written out by hand."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(10, 3).double(), torch.arange(10) % 3
    whole = Samples(x, y)
    return model, Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "tiny")


@pytest.fixture
def pictures_task():
    """Three classes of 8 x 8 images for networks that want three channels."""
    torch.manual_seed(0)
    x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
    whole = Samples(x, y)
    return Task(whole[y == 0], whole[y != 0], whole[y != 0], whole[y == 0], (0,), 3, "class:0")


@pytest.fixture
def vit():
    """A transformers ViT of three classes."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return ViTForImageClassification(config).eval()
