"""Distances against references."""

import numpy as np
import pytest
import scipy.linalg

from erase_sd.eval.metrics import (
    bootstrap,
    cmmd,
    frechet_distance,
    kernel_distance,
    pixel_change,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_frechet_is_the_textbook_formula(rng):
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(1, 2, size=(200, 6))
    ca, cb = np.cov(a.T), np.cov(b.T)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real
    )
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-8)


def test_frechet_with_fewer_images_than_features(rng):
    """Both sets in one 4-dimensional subspace of 50: the distance is that within the subspace."""
    basis = np.linalg.qr(rng.normal(size=(50, 4)))[0]
    a, b = rng.normal(size=(9, 4)), rng.normal(2, 1, size=(7, 4))
    assert frechet_distance(a @ basis.T, b @ basis.T) == pytest.approx(
        frechet_distance(a, b), rel=1e-9
    )
    assert frechet_distance(a @ basis.T, a @ basis.T) == pytest.approx(0, abs=1e-9)


def test_frechet_agrees_with_torchmetrics(rng):
    """By its public class, with features that are the pictures themselves."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 5

        def forward(self, x):
            return x.flatten(1)

    a, b = rng.normal(size=(100, 5)), rng.normal(0.5, 2, size=(90, 5))
    reference = FrechetInceptionDistance(feature=Flat(), normalize=True).set_dtype(torch.float64)
    for x, real in ((a, True), (b, False)):
        reference.update(torch.from_numpy(x).reshape(-1, 5, 1, 1), real=real)
    assert frechet_distance(a, b) == pytest.approx(float(reference.compute()), rel=1e-6)


def test_kid_agrees_with_sklearns_kernel(rng):
    from sklearn.metrics.pairwise import polynomial_kernel

    a, b = rng.normal(size=(40, 8)), rng.normal(0.3, 1, size=(30, 8))
    kaa, kbb, kab = (
        polynomial_kernel(x, y, degree=3, gamma=1 / 8, coef0=1) for x, y in ((a, a), (b, b), (a, b))
    )
    want = (
        (kaa.sum() - kaa.trace()) / (40 * 39)
        + (kbb.sum() - kbb.trace()) / (30 * 29)
        - 2 * kab.mean()
    )
    assert kernel_distance(a, b) == pytest.approx(want)


def test_cmmd_agrees_with_sklearns_kernel(rng):
    from sklearn.metrics.pairwise import rbf_kernel

    a, b = rng.normal(size=(20, 8)), rng.normal(1, 1, size=(25, 8))
    want = 1000 * sum(
        s * rbf_kernel(x, y, gamma=1 / 200).mean() for s, x, y in ((1, a, a), (1, b, b), (-2, a, b))
    )
    assert cmmd(a, b) == pytest.approx(want)


def test_bootstrap_covers_and_is_seeded(rng):
    values = rng.normal(3, 1, size=200)
    low, high = bootstrap(values)
    assert low < values.mean() < high and (low, high) == bootstrap(values)
    assert bootstrap([1.0] * 5) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])


def test_pixel_change_is_the_mean_absolute_difference_pair_by_pair(rng):
    a, b = rng.integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    want = [np.abs(x.astype(int) - y.astype(int)).mean() / 255 for x, y in zip(a, b, strict=True)]
    assert pixel_change(a, b) == pytest.approx(want)
    halves = a.astype(np.float32) / 255, b.astype(np.float32) / 255
    assert pixel_change(*halves) == pytest.approx(want, rel=1e-5)
    assert pixel_change(a, a) == pytest.approx([0, 0, 0])
    for other in (b[:2], b.astype(np.float32), b[0]):
        with pytest.raises(ValueError, match="one kind, got"):
            pixel_change(a, other)


def test_distances_refuse_what_they_cannot_compare():
    for a, b in ((np.zeros((1, 3)), np.zeros((4, 3))), (np.zeros((4, 3)), np.zeros((4, 2)))):
        with pytest.raises(ValueError, match="got"):
            frechet_distance(a, b)
    with pytest.raises(ValueError, match="at least two rows"):
        kernel_distance(np.zeros((1, 3)), np.zeros((4, 3)))
