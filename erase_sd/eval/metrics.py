"""Distances between image sets, and how sure a number is. Pure functions of numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two feature sets, `(n, d)` and `(m, d)`, as Gaussians.

    `‖μa − μb‖² + tr Ca + tr Cb − 2 tr (Ca Cb)^½`, the last term as the nuclear norm of `Xa Xbᵀ` of
    centred
    features: exact for any n, m and d, where a matrix root of a singular covariance is not.

    Raises:
        ValueError: If a set has fewer than two rows, or the widths differ.

    Source: Heusel et al., arXiv 1706.08500, Eq. 6.

    >>> round(frechet_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])), 6)
    1.0
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"expected two sets (n, d) of at least two rows, got {a.shape} and {b.shape}"
        )
    xa, xb = a - a.mean(0), b - b.mean(0)
    xa, xb = xa / np.sqrt(len(a) - 1), xb / np.sqrt(len(b) - 1)
    # The singular values of Xa Xbᵀ (n x m) are those of Ra Rbᵀ, with R the triangular factors (d x
    # d at most).
    ra, rb = np.asarray(np.linalg.qr(xa, mode="r")), np.asarray(np.linalg.qr(xb, mode="r"))
    cross = np.linalg.norm(ra @ rb.T, "nuc")
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(max(mean + (xa**2).sum() + (xb**2).sum() - 2 * cross, 0.0))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID: unbiased squared MMD with the kernel `(x·y/d + 1)³`; may be slightly negative.

    Source: Bińkowski et al., arXiv 1801.01401.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, m, d = len(a), len(b), a.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"expected at least two rows in each set, got {n} and {m}")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray((x @ y.T / d + 1) ** 3)

    kaa, kbb = kernel(a, a), kernel(b, b)
    within = (kaa.sum() - kaa.trace()) / (n * (n - 1)) + (kbb.sum() - kbb.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
    """CMMD of unit CLIP image embeddings: 1,000 times the squared MMD, Gaussian kernel, σ = 10.

    Source: Jayasumana et al., arXiv 2401.09603; the biased estimate of its code.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        return float(np.exp(-squared.clip(0) / (2 * 10.0**2)).mean())

    return 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


def bootstrap(
    values: Sequence[float],
    *,
    statistic: Callable[[np.ndarray], float] = lambda v: float(np.mean(v)),
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile confidence interval of a statistic of independent values.

    Args:
        values: `n` numbers.
        statistic: Of an array of them.
        level: Share of the draws inside.
        draws: Resamples.
        seed: Of the resampling.
    """
    data = np.asarray(values, np.float64)
    if not len(data):
        raise ValueError("expected at least one value")
    rng = np.random.default_rng(seed)
    means = [statistic(data[rng.integers(0, len(data), len(data))]) for _ in range(draws)]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def pixel_change(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of two sets of pictures, pair by pair.

    Args:
        a: `(n, h, w, 3)`, uint8 (0..255) or floating point in 0..1.
        b: Likewise, of the same shape and kind.

    Returns:
        `(n,)`, in 0..1.

    Raises:
        ValueError: If shapes or kinds differ.

    >>> pixel_change(np.zeros((1, 2, 2, 3)), np.ones((1, 2, 2, 3)))
    array([1.])
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.ndim != 4:
        raise ValueError(
            "expected two sets (n, h, w, 3) of one kind, "
            f"got {a.shape} {a.dtype} and {b.shape} {b.dtype}"
        )
    full = 255 if a.dtype == np.uint8 else 1
    change = np.abs(a.astype(np.float64) - b.astype(np.float64)).mean((1, 2, 3)) / full
    return np.asarray(change)
