"""In the span of a few rows every method finds what it finds in the whole space."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase_sd.algebra import moments
from erase_sd.algebra.certificate import certify, explained
from erase_sd.algebra.methods import METHODS
from erase_sd.algebra.moments import DENSE, SecondMoment
from erase_sd.algebra.problem import Problem

double = torch.float64


def problem(width, seed, *, summed=False, gram=True):
    """Twenty to forty rows in all; `summed` holds their sums alone."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0.3, -1.0, width, dtype=double)

    def rows(n, shift=0.0):
        return torch.randn(n, width, generator=g, dtype=double) * scale + shift

    def sums(rows):
        found = SecondMoment.of(rows)
        assert found.weights is not None
        return SecondMoment.summed(found.gram, found.total, found.count) if summed else found

    forget, retain, W = rows(6, 0.3), rows(20), rows(5)
    return Problem(
        forget=sums(forget),
        retain=sums(retain),
        null=rows(3),
        other_nulls=rows(2),
        concepts=rows(2, 0.3),
        anchors=rows(2),
        kept=rows(4),
        named=rows(2),
        weight_gram=W.T @ W if gram else torch.zeros(0, 0),
    )


@pytest.mark.parametrize("name", METHODS)
@given(width=st.integers(40, 60), seed=st.integers(0, 2**16))
def test_rows_and_their_sum_give_one_edit(name, width, seed):
    method = METHODS[name]
    few, whole = problem(width, seed), problem(width, seed, summed=True)
    found, dense = (method.solve(p, method.options()) for p in (few, whole))
    torch.testing.assert_close(found.matrix, dense.matrix, atol=1e-6, rtol=1e-6)
    ours, theirs = certify(found, few), certify(dense, whole)
    theirs["spectrum"] = theirs["spectrum"][: len(ours["spectrum"])]  # the others are zeros
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"rece"}))
def test_no_method_makes_a_matrix_of_features_by_features(name):
    wide = problem(DENSE + 8, 0, gram=False)
    edit = METHODS[name].solve(wide, METHODS[name].options())
    assert edit.width == DENSE + 8 and certify(edit, wide)["norm"] >= 1 - 1e-9
    with pytest.raises(ValueError, match=f"at most {DENSE}; got {DENSE + 8}"):
        _ = wide.retain.gram


def test_the_method_that_would_is_refused():
    wide = problem(DENSE + 8, 0, gram=False)
    with pytest.raises(ValueError, match=f"at most {DENSE}; got {DENSE + 8}: .* another method"):
        METHODS["rece"].solve(wide, METHODS["rece"].options())


def test_more_rows_than_can_be_summed_are_refused(monkeypatch):
    monkeypatch.setattr(moments, "DENSE", 8)
    half = SecondMoment.of(torch.ones(5, 9))
    with pytest.raises(ValueError, match="at most 8; got 9"):
        half + half


def test_explained_is_the_formula():
    rows = torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=double)
    moment = SecondMoment.of(rows * torch.logspace(0, -3, 12, dtype=double))
    u = torch.eye(12, dtype=double)[5]
    C = moment.matrix
    want = u @ C @ torch.linalg.solve(C + C.trace() / 12 * torch.eye(12), u)
    assert math.isclose(explained(moment, u), float(want), rel_tol=1e-6)
    assert explained(SecondMoment.zeros(12), u) == 0
