"""What a two-sided edit promises: theorems, for random weights and for every input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase_sd.algebra.certificate import certify_values
from erase_sd.algebra.edit import LowRankEdit, joint
from erase_sd.algebra.left import LeftOptions, left_side
from erase_sd.algebra.methods import soft
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.two_sided import TwoSidedEdit

double = torch.float64
D, OUT = 12, 9


def generator(seed):
    return torch.Generator().manual_seed(seed)


def side(width, rank, seed):
    g = generator(seed)
    A = torch.randn(width, rank, generator=g, dtype=double)
    B = torch.randn(width, rank, generator=g, dtype=double)
    return LowRankEdit(A, B)


def unit(width, rank, seed):
    q, _ = torch.linalg.qr(torch.randn(width, rank, generator=generator(seed), dtype=double))
    return LowRankEdit(q, q)


def problem(seed=0, concepts=1):
    g = generator(seed)
    scale = torch.logspace(0.3, -1.5, D, dtype=double)

    def rows(n, shift=0.0):
        return torch.randn(n, D, generator=g, dtype=double) * scale + shift

    return Problem(
        forget=SecondMoment.of(rows(20, 0.7)),
        retain=SecondMoment.of(rows(200)),
        null=rows(3),
        contrast=rows(concepts, 0.7),
        drawn=0.1 * rows(6),
    )


@given(st.integers(0, 2**16), st.integers(0, 3), st.integers(1, 2), st.floats(0, 1.5))
def test_lora_is_the_baked_weight_at_every_scale(seed, right, left, scale):
    W = torch.randn(OUT, D, generator=generator(seed), dtype=double)
    edit = TwoSidedEdit(side(D, right, seed + 1), side(OUT, left, seed + 2), scale)
    down, up = edit.factors(W)
    assert down.shape[0] == up.shape[1] == edit.rank == right + left
    L = torch.eye(OUT, dtype=double) - edit.left.A @ edit.left.B.T
    want = W + scale * (L @ W @ edit.right.matrix - W)
    torch.testing.assert_close(edit.apply_to_weight(W), want, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(W + up @ down, want, atol=1e-9, rtol=1e-7)


def test_columns_that_read_no_text_pass_only_through_the_left_side():
    W = torch.randn(OUT, D + 4, generator=generator(0), dtype=double)
    edit = TwoSidedEdit(side(D, 2, 1), unit(OUT, 1, 2))
    L = torch.eye(OUT, dtype=double) - edit.left.A @ edit.left.B.T
    torch.testing.assert_close(edit.apply_to_weight(W)[:, D:], L @ W[:, D:])
    down, up = edit.factors(W)
    torch.testing.assert_close(W + up @ down, edit.apply_to_weight(W))


def test_scale_zero_is_the_weight_bit_for_bit():
    W = torch.randn(OUT, D)
    assert torch.equal(TwoSidedEdit(side(D, 2, 1), unit(OUT, 1, 2), 0.0).apply_to_weight(W), W)


@pytest.mark.parametrize("seed", range(3))
def test_no_input_writes_along_the_left_side(seed):
    """`bᵀ L W T x = 0` for every x.

    Here for the inputs that try hardest, the singular vectors of W'.
    """
    task, options = problem(seed), LeftOptions()
    W = torch.randn(OUT, D, generator=generator(seed + 9), dtype=double)
    edit = TwoSidedEdit(soft.solve(task, soft.Options()), left_side(W, task, options))
    new = edit.apply_to_weight(W)
    b = edit.left.B
    assert b.shape[1] == 1 and float(b.norm()) == pytest.approx(1)
    assert (b.T @ new).abs().max() < 1e-12
    assert (
        b.T @ W @ edit.right.matrix
    ).abs().max() > 1e-2  # which the right side alone does not do
    _, _, vh = torch.linalg.svd(new)
    assert (b.T @ new @ vh.T).abs().max() < 1e-12


def test_several_left_sides_jointly_and_one_taken_out_again():
    sides = [unit(OUT, 1, s) for s in range(3)]
    W = torch.randn(OUT, D, generator=generator(5), dtype=double)
    for order in ([0, 1, 2], [2, 0, 1]):
        new = TwoSidedEdit(
            LowRankEdit.identity(D), joint([sides[i] for i in order])
        ).apply_to_weight(W)
        for one in sides:
            assert (one.B.T @ new).abs().max() < 1e-10
    both = joint(sides[:2]).matrix
    torch.testing.assert_close(joint([sides[1], sides[0]]).matrix, both)


def test_the_empty_prompt_is_untouched_on_both_sides():
    task, options = problem(), LeftOptions(move=1e-6)
    W = torch.randn(OUT + 8, D, generator=generator(2), dtype=double)
    right, left = soft.solve(task, soft.Options()), left_side(W, task, options)
    new = TwoSidedEdit(right, left).apply_to_weight(W)
    torch.testing.assert_close(new @ task.null.T, W @ task.null.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(right.matrix @ task.null.T, task.null.T, atol=1e-8, rtol=0)


def test_a_family_weighs_as_much_for_each_member():
    one = problem()
    two = Problem(forget=one.forget, retain=one.retain, null=one.null, concepts=torch.zeros(2, D))
    single = Problem(forget=one.forget, retain=one.retain, null=one.null)
    many = soft.solve(two, soft.Options(mu=1.0))
    torch.testing.assert_close(many.matrix, soft.solve(single, soft.Options(mu=2.0)).matrix)


def test_the_right_side_is_the_least_squares_answer_when_nothing_is_cut_or_protected():
    task = problem()
    free = Problem(forget=task.forget, retain=task.retain)
    edit = soft.solve(free, soft.Options(mu=2.0, epsilon=0.1, cut=0.0))
    C = free.retain.matrix + free.retain.ridge(0.1) * torch.eye(D, dtype=double)
    want = C @ torch.linalg.inv(C + 2.0 * free.forget.matrix)
    torch.testing.assert_close(edit.matrix, want, atol=1e-7, rtol=1e-6)
    assert float(edit.gains.max()) < 1  # no direction is overshot


def test_left_side_against_a_dense_search():
    """`b ∝ (I + s S + ℓ K)⁻¹ W c`, ℓ the least that keeps the empty prompt's outputs to `move`."""
    task = problem(4)
    W = torch.randn(OUT, D, generator=generator(11), dtype=double)
    for move in (0.5, 0.05, 0.005):
        b = left_side(W, task, LeftOptions(spare=3.0, move=move)).B[:, 0]
        Y = W @ task.null.T
        Y = Y / Y.norm()
        moved = float((Y.T @ b).norm())
        assert moved <= move * (1 + 1e-6)
        A = torch.eye(OUT, dtype=double) + 3.0 * (W @ task.drawn.T) @ (W @ task.drawn.T).T
        c = W @ task.contrast[0]
        free = torch.linalg.solve(A, c)
        if float((Y.T @ free / free.norm()).norm()) <= move:
            want = free
        else:
            penalties = torch.logspace(-6, 12, 4000, dtype=double)
            tried = [torch.linalg.solve(A + p * Y @ Y.T, c) for p in penalties]
            want = next(t for t in tried if float((Y.T @ t / t.norm()).norm()) <= move)
            assert moved == pytest.approx(move, rel=1e-3)  # the least penalty, not more
        assert abs(float(b @ want / want.norm())) == pytest.approx(1, abs=1e-3)


def test_cut_keeps_the_rank_low():
    ranks = [soft.solve(problem(), soft.Options(cut=c)).rank for c in (0.0, 0.3, 0.9, 1.0)]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] > ranks[2] and ranks[-1] >= 1


class TestCertificate:
    """`unreachable` against a least-squares solver that knows nothing of our formula."""

    def setup_method(self):
        self.task = problem(3, concepts=1)
        self.weights = {
            f"w{i}": torch.randn(OUT, D, generator=generator(i), dtype=double) for i in range(3)
        }

    def edits(self, left):
        right = soft.solve(self.task, soft.Options())
        return {
            n: TwoSidedEdit(right, left_side(w, self.task, left) if left else None)
            for n, w in self.weights.items()
        }

    @pytest.mark.parametrize("left", [None, LeftOptions()])
    def test_is_what_the_best_input_of_all_leaves(self, left):
        edits = self.edits(left)
        stack = torch.cat([edits[n].apply_to_weight(w) for n, w in self.weights.items()])
        c = torch.cat([w @ self.task.contrast[0] for w in self.weights.values()])
        best = torch.linalg.lstsq(stack, c).solution
        want = float((stack @ best - c).square().sum() / c.square().sum())
        found = certify_values(self.weights, edits, self.task.contrast)
        assert found["unreachable"] == pytest.approx(want, abs=1e-8)
        assert found["unreachable_before"] == pytest.approx(0, abs=1e-8)

    def test_a_right_side_that_can_be_inverted_certifies_nothing_and_a_left_side_does(self):
        one = certify_values(self.weights, self.edits(None), self.task.contrast)
        two = certify_values(
            self.weights,
            self.edits(LeftOptions(spare=0, move=1)),
            self.task.contrast,
        )
        assert one["unreachable"] < 1e-6 < 0.2 < two["unreachable"]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.randn(OUT, D - 1), r"\(d_out, 12\), got \(9, 11\)"),
        (torch.randn(OUT + 1, D), r"\(9, d_in\), got \(10, 12\)"),
        (torch.full((OUT, D), float("nan")), "damaged"),
    ],
)
def test_weights_that_do_not_fit_are_named(weight, message):
    with pytest.raises(ValueError, match=message):
        TwoSidedEdit(side(D, 1, 0), unit(OUT, 1, 0)).apply_to_weight(weight)


def test_a_weight_that_would_not_be_finite_is_refused():
    edit = TwoSidedEdit(side(D, 1, 0), None, 1e6)
    with pytest.raises(ValueError, match="not finite in float16"):
        edit.apply_to_weight(torch.full((OUT, D), 6e4).half())
