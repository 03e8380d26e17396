import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase_sd.algebra.moments import SecondMoment, orthonormal


@given(n=st.integers(1, 40), d=st.integers(1, 12), cut=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_streaming_equals_batch_and_subtraction_undoes_it(n, d, cut, seed):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    k = int(cut * n)
    whole, a, b = SecondMoment.of(rows), SecondMoment.of(rows[:k]), SecondMoment.of(rows[k:])
    torch.testing.assert_close((a + b).matrix, whole.matrix)
    torch.testing.assert_close((b + a).mean, whole.mean)
    torch.testing.assert_close((whole - a).gram, b.gram, atol=1e-9, rtol=1e-9)
    assert (whole - a).count == n - k


def rows_of(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * torch.logspace(0, -3, d).double()


@given(n=st.integers(2, 11), d=st.integers(12, 20), gone=st.booleans(), seed=st.integers(0, 2**16))
def test_rows_held_one_by_one_are_their_sum(n, d, gone, seed):
    rows = rows_of(n, d, seed)
    few = SecondMoment.of(rows, torch.arange(1, n + 1))
    if gone:  # a row taken out leaves one that counts less than nothing, and cancels
        few = few - SecondMoment.of(rows[:1])
    assert few.weights is not None
    whole = SecondMoment.summed(few.gram, few.total, few.count)
    basis, _ = torch.linalg.qr(rows_of(3, d, seed + 1).T)
    V, exact = rows_of(2, d, seed + 2).T, {"atol": 1e-9, "rtol": 1e-7}
    torch.testing.assert_close(few.times(V), whole.times(V), **exact)
    torch.testing.assert_close(few.outside(basis).gram, whole.outside(basis).gram, **exact)
    torch.testing.assert_close(few.root @ few.root.T, whole.matrix, **exact)
    assert few.energy == pytest.approx(whole.energy) == pytest.approx(float(whole.matrix.trace()))
    values, vectors = few.eigen
    torch.testing.assert_close((vectors * values) @ vectors.T, whole.matrix, **exact)
    torch.testing.assert_close(values[:n], whole.eigen[0][: len(values)][:n], **exact)
    solved = few.inverse(few.ridge(1e-3))(V)
    torch.testing.assert_close(solved, whole.inverse(few.ridge(1e-3))(V), atol=1e-7, rtol=1e-7)


def test_rows_that_are_left_out_were_never_there():
    rows = rows_of(6, 9, 0)
    left = SecondMoment.of(rows).leaving_out([1, 4])
    torch.testing.assert_close(left.gram, SecondMoment.of(rows[[0, 2, 3, 5]]).gram)
    torch.testing.assert_close(
        left.inverse(0.1)(rows.T), (left - left.of(rows[:0])).inverse(0.1)(rows.T)
    )
    assert left.count == 4
    with pytest.raises(ValueError, match="one by one"):
        SecondMoment.of(rows_of(10, 9, 0)).leaving_out([1])


def test_matrix_is_the_uncentred_second_moment():
    rows = torch.randn(30, 5, dtype=torch.float64) + 3
    torch.testing.assert_close(
        SecondMoment.of(rows).matrix, torch.einsum("ni,nj->ij", rows, rows) / 30
    )


def test_subspace_is_that_of_the_svd():
    rows = torch.randn(50, 8, dtype=torch.float64)
    _, _, vh = torch.linalg.svd(rows)
    U = SecondMoment.of(rows).subspace(3)
    torch.testing.assert_close(U @ U.T, vh[:3].T @ vh[:3])
    torch.testing.assert_close(U.T @ U, torch.eye(3, dtype=torch.float64))


def test_rank_beyond_the_data_is_refused():
    with pytest.raises(ValueError, match="span 2 dimensions"):
        SecondMoment.of(torch.randn(2, 8)).subspace(3)


def test_nan_features_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        SecondMoment.of(torch.tensor([[1.0, float("nan")]]))


def test_widths_must_agree():
    with pytest.raises(ValueError, match="expected 3, got 4"):
        SecondMoment.zeros(3) + SecondMoment.zeros(4)


def test_a_relative_ridge_ignores_the_scale():
    rows = torch.randn(20, 4, dtype=torch.float64)
    small, large = SecondMoment.of(rows), SecondMoment.of(10 * rows)
    assert large.ridge(0.1) == pytest.approx(100 * small.ridge(0.1))
    assert small.ridge(0.1) == pytest.approx(0.1 * float(small.matrix.trace()) / 4)


def test_orthonormal_basis_holds_the_rows():
    rows = torch.randn(3, 6, dtype=torch.float64)
    Q = orthonormal(rows)
    assert Q.shape == (6, 3)
    torch.testing.assert_close(rows @ Q @ Q.T, rows)
