import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase_sd.algebra.edit import LowRankEdit, joint

double = torch.float64


def projection(d, k, seed):
    """A random oblique projection's complement: T A = 0, T² = T."""
    g = torch.Generator().manual_seed(seed)
    A, B = (
        torch.randn(d, k, generator=g, dtype=double),
        torch.randn(d, k, generator=g, dtype=double),
    )
    return LowRankEdit(A, B @ torch.linalg.inv(A.T @ B))


shapes = st.tuples(st.integers(4, 16), st.integers(1, 3), st.integers(0, 2**16))


@given(shapes)
def test_thin_products_equal_the_dense_map(shape):
    edit = projection(*shape)
    x, W = torch.randn(7, edit.width, dtype=double), torch.randn(5, edit.width, dtype=double)
    torch.testing.assert_close(edit.apply_to_features(x), x @ edit.matrix.T)
    torch.testing.assert_close(edit.apply_to_weight(W), W @ edit.matrix)
    torch.testing.assert_close(
        W @ edit.apply_to_features(x).T, edit.apply_to_weight(W) @ x.T
    )  # runtime == baked
    torch.testing.assert_close(
        torch.tensor(edit.norm).double(), torch.linalg.matrix_norm(edit.matrix, 2)
    )


@given(shapes)
def test_projections_are_idempotent(shape):
    edit = projection(*shape)
    torch.testing.assert_close(edit.matrix @ edit.matrix, edit.matrix, atol=1e-7, rtol=1e-7)


@given(shapes, st.integers(0, 99))
def test_then_is_composition(shape, seed):
    first, second = projection(*shape), projection(shape[0], 1, seed)
    torch.testing.assert_close(
        first.then(second).matrix, second.matrix @ first.matrix, atol=1e-8, rtol=1e-6
    )


def test_strength_zero_is_the_identity_bit_for_bit():
    edit = projection(8, 2, 0).scaled(0)
    W = torch.randn(5, 8)
    assert torch.equal(edit.apply_to_weight(W), W)


def test_joint_forgets_all_in_any_order():
    a, b, c = projection(12, 2, 1), projection(12, 1, 2), projection(12, 1, 3)
    T = joint([a, b, c]).matrix
    torch.testing.assert_close(T, joint([c, a, b]).matrix)
    for edit in (a, b, c):
        assert (T @ edit.A).abs().max() < 1e-9
        assert (edit.B.T @ T).abs().max() < 1e-9
    torch.testing.assert_close(T @ T, T)


def test_joint_of_one_is_itself_even_if_it_is_no_projection():
    edit = LowRankEdit(torch.randn(6, 2), torch.randn(6, 2))
    assert joint([edit]) is edit


def test_joint_keeps_each_overshoot():
    a, b = projection(12, 1, 1), projection(12, 1, 2)
    more = joint([a.scaled(1.5), b])
    torch.testing.assert_close(more.matrix @ a.A, -0.5 * a.A)
    assert (more.matrix @ b.A).abs().max() < 1e-9


def test_joint_of_soft_edits_is_the_joint_least_squares_solution():
    """`C (C + μ Σ C_f)⁻¹` of both concepts, from what each was alone.

    Gains μv/(1 + μv) along C-orthonormal u.
    """
    g = torch.Generator().manual_seed(3)
    S = torch.randn(10, 40, generator=g, dtype=double)
    C, mu = S @ S.T / 40, 3.0
    F1, F2 = (torch.randn(3, 10, generator=g, dtype=double) for _ in range(2))

    def solve(F):
        values, vectors = torch.linalg.eigh(
            torch.linalg.inv(torch.linalg.cholesky(C))
            @ F.T
            @ F
            @ torch.linalg.inv(torch.linalg.cholesky(C)).T
        )
        v, U = values[-3:], torch.linalg.inv(torch.linalg.cholesky(C)).T @ vectors[:, -3:]
        return LowRankEdit((F.T @ F @ U / v) * (mu * v / (1 + mu * v)), U)

    one, two = solve(F1), solve(F2)
    torch.testing.assert_close(
        one.matrix, C @ torch.linalg.inv(C + mu * F1.T @ F1), atol=1e-8, rtol=1e-6
    )
    want = C @ torch.linalg.inv(C + mu * (F1.T @ F1 + F2.T @ F2))
    torch.testing.assert_close(joint([one, two]).matrix, want, atol=1e-8, rtol=1e-6)


def test_the_same_concept_twice_is_no_disaster():
    a = projection(12, 2, 1)
    torch.testing.assert_close(joint([a, a]).matrix @ a.A, torch.zeros_like(a.A), atol=1e-7, rtol=0)


def test_joint_least_squares_is_the_joint_least_squares_solution():
    # Two concepts solved one by one under one metric, joined, equal both solved at once.
    S = torch.randn(10, 40, dtype=double)
    S = S @ S.T
    U = torch.randn(10, 3, dtype=double)

    def solve(u):
        B = torch.linalg.solve(S, u)
        return LowRankEdit(u @ torch.linalg.inv(u.T @ B), B)

    torch.testing.assert_close(joint([solve(U[:, :1]), solve(U[:, 1:])]).matrix, solve(U).matrix)


def test_factors_are_trimmed_to_their_rank():
    edit = projection(9, 2, 5)
    again = LowRankEdit(
        torch.cat([edit.A, edit.A], 1), torch.cat([edit.B, 0 * edit.B], 1)
    ).trimmed()
    assert again.rank == 2
    torch.testing.assert_close(again.matrix, edit.matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_keep_their_dtype_and_round_once(dtype):
    edit = projection(16, 1, 3)
    W = torch.randn(4, 16).to(dtype)
    out = edit.apply_to_weight(W)
    assert out.dtype == dtype
    exact = (W.double() @ edit.matrix).to(dtype)
    assert (out.float() - exact.float()).abs().max() <= 2 * torch.finfo(
        dtype
    ).eps * exact.float().abs().max()


def test_bad_input_is_named():
    edit = projection(8, 1, 0)
    with pytest.raises(ValueError, match=r"\(d_out, 8\), got \(3, 9\)"):
        edit.apply_to_weight(torch.randn(3, 9))
    with pytest.raises(ValueError, match="damaged"):
        edit.apply_to_weight(torch.full((3, 8), float("nan")))
    with pytest.raises(ValueError, match="NaN"):
        LowRankEdit(torch.full((3, 1), float("inf")), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="one shape"):
        LowRankEdit(torch.zeros(3, 1), torch.zeros(4, 1))


def test_edits_that_are_no_projections_are_superposed():
    a = LowRankEdit(torch.randn(6, 2, dtype=double), torch.randn(6, 2, dtype=double))
    b = projection(6, 1, 4)
    eye = torch.eye(6, dtype=double)
    torch.testing.assert_close(joint([a, b]).matrix - eye, (a.matrix - eye) + (b.matrix - eye))
    assert b.gains is not None and b.scaled(0.3).gains is not None and a.gains is None
