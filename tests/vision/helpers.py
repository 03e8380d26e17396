"""What several test files of this folder use."""

import numpy as np
import torch
import torch.nn.functional as F

from erase_sd.vision.pretrained import Logits


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def close(model, parameters):
    for p, q in zip(model.parameters(), parameters, strict=True):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-6)


def flat(parameters):
    return torch.cat([p.flatten() for p in parameters])


def loss(model, part, reduction="mean"):
    return F.cross_entropy(model(part.x), part.y, reduction=reduction)


def grads(model, value):
    return torch.autograd.grad(value, list(model.parameters()))


def descended(model, gradients, lr=0.1):
    """One step of SGD with the common weight decay."""
    return [p - lr * (d + 5e-4 * p) for p, d in zip(model.parameters(), gradients, strict=True)]


def grey(value, size=8):
    return np.full((size, size, 3), value, np.uint8)


def swin():
    """A tiny Swin of random weights, three classes."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=8,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=2,
        num_labels=3,
    )
    return Logits(SwinForImageClassification(config))
