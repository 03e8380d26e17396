"""Every method against an independent dense reference, and the theorems it rests on."""

import numpy as np
import pytest
import scipy.linalg
import torch

from erase_sd.algebra.methods import (
    METHODS,
    cure,
    dp,
    gf,
    leace,
    rayleigh,
    rece,
    speed,
    trce,
    uce,
    unlink,
    unlink_deflated,
    unlink_oblique,
)
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem
from erase_sd.algebra.revival import revival

D = 12
double = torch.float64


def rows(n, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, D, generator=g, dtype=double) * torch.logspace(0.3, -1.5, D, dtype=double)
        + shift
    )


F, R, NULL = rows(9, 1, 1.0), rows(200, 2), rows(4, 3)
C, G, K = rows(2, 4), rows(2, 5), rows(5, 6)
W = rows(30, 7)


@pytest.fixture
def problem():
    return Problem(
        forget=SecondMoment.of(F),
        retain=SecondMoment.of(R),
        null=NULL,
        concepts=C,
        anchors=G,
        kept=K,
        weight_gram=W.T @ W,
    )


def ridged(problem, epsilon):
    return problem.retain.matrix + problem.retain.ridge(epsilon) * torch.eye(D, dtype=double)


def run(method, problem, **options):
    return method.solve(problem, method.Options(**options))


def numpy_importance(X, alpha):
    _, s, vt = np.linalg.svd(X)
    e = np.zeros(D)
    e[: len(s)] = s**2 / (s**2).sum()
    return (vt.T * (alpha * e / ((alpha - 1) * e + 1))) @ vt


def reference(name):
    """Each method written again in numpy, densely, from its paper, without our code."""
    f, r, c, g, k, eye = F.numpy(), R.numpy(), C.numpy(), G.numpy(), K.numpy(), np.eye(D)
    Cf, Cr = f.T @ f / len(f), r.T @ r / len(r)
    if name == "unlink":
        v = np.linalg.svd(f)[2][:1]
        return eye - v.T @ v
    if name == "unlink-oblique":
        u = np.linalg.svd(f)[2][:1].T
        s = np.linalg.inv(Cr + 1e-3 * np.trace(Cr) / D * eye)
        return eye - u @ np.linalg.inv(u.T @ s @ u) @ u.T @ s
    if name == "rayleigh":
        c_ = Cr + 1e-3 * np.trace(Cr) / D * eye
        u = scipy.linalg.eigh(Cf, c_)[1][:, -1:]  # scipy normalises to uᵀ C u = 1
        return eye - c_ @ u @ u.T
    if name in ("gf", "cure"):
        af, ar = (3, 100) if name == "gf" else (2, 2)
        pf, pr = numpy_importance(f, af), numpy_importance(r, ar)
        return eye - pf + (pr @ pf if name == "gf" else pf @ pr)
    if name == "uce":
        m = 0.5 * eye + sum(np.outer(x, x) for x in c) + sum(np.outer(x, x) for x in k)
        return eye + sum(np.outer(b - a, a) for a, b in zip(c, g, strict=True)) @ np.linalg.inv(m)
    if name == "trce":
        n = NULL.numpy()
        m0 = 0.01 * ((len(n) - 1) * Cr + np.outer(n[0], n[0]))
        top = sum(np.outer(b, a) for a, b in zip(c, g, strict=True)) / len(c) + m0
        bottom = sum(np.outer(a, a) for a in c) / len(c) + m0
        ridge = 1e-8 * np.trace(bottom) / D * eye  # ours: few words do not fill the space
        return (top + ridge) @ np.linalg.inv(bottom + ridge)
    if name == "dp":
        kept = np.concatenate([k, NULL.numpy()])
        u2 = scipy.linalg.null_space(kept)
        safe = scipy.linalg.orth(np.concatenate([g, k]).T)
        x = u2.T @ c.T
        return eye + (safe @ safe.T @ c.T - c.T) @ np.linalg.inv(x.T @ x) @ x.T @ u2.T
    if name == "leace":
        x = np.concatenate(
            [np.repeat(f, len(r), 0), np.repeat(r, len(f), 0)]
        )  # equal class weights
        z = np.repeat([1.0, 0.0], len(f) * len(r))
        cov = np.cov(x.T, bias=True)
        w = scipy.linalg.fractional_matrix_power(cov, -0.5).real
        u = w @ ((x - x.mean(0)).T @ (z - 0.5))
        u = u / np.linalg.norm(u)
        return eye - np.linalg.inv(w) @ np.outer(u, u) @ w
    raise AssertionError(name)


CASES = {
    "unlink": (unlink, {}),
    "unlink-oblique": (unlink_oblique, {"protect_null": False}),
    "rayleigh": (rayleigh, {"rank": 1, "protect_null": False}),
    "gf": (gf, {}),
    "cure": (cure, {}),
    "uce": (uce, {}),
    "trce": (trce, {}),
    "dp": (dp, {"energy": 1e-12}),
    "leace": (leace, {"tolerance": 1e-12}),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_an_independent_reference(name, problem):
    method, options = CASES[name]
    np.testing.assert_allclose(
        run(method, problem, **options).matrix.numpy(), reference(name), atol=1e-8
    )


@pytest.mark.parametrize("name", METHODS)
def test_registry_entry_loads_and_runs_with_its_defaults(name, problem):
    method = METHODS[name]
    edit = method.solve(problem, method.options())
    assert edit.width == D and 0 < edit.rank <= D
    assert METHODS[name].source and METHODS[name].summary


# The published ridge or threshold of these three is absolute: scale matters to them.
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"uce", "rece", "speed"}))
def test_rescaled_features_rescale_nothing(name, problem):
    """A network whose features and weights are scaled against each other is the same network."""
    big = Problem(
        forget=SecondMoment.of(7 * F),
        retain=SecondMoment.of(7 * R),
        null=7 * NULL,
        concepts=7 * C,
        anchors=7 * G,
        kept=7 * K,
    )
    method = METHODS[name]
    options = method.options()
    torch.testing.assert_close(
        method.solve(big, options).matrix,
        method.solve(problem, options).matrix,
        atol=1e-8,
        rtol=1e-6,
    )


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("method", [unlink, unlink_deflated, unlink_oblique, rayleigh])
def test_projections_are_idempotent_and_of_their_rank(method, k, problem):
    T = run(method, problem, rank=k).matrix
    torch.testing.assert_close(T @ T, T, atol=1e-8, rtol=1e-6)
    assert torch.linalg.matrix_rank(T, atol=1e-6) == D - k


@pytest.mark.parametrize("method", [unlink_deflated, unlink_oblique, rayleigh])
def test_the_empty_prompt_stays_exactly(method, problem):
    T = run(method, problem).matrix
    assert (NULL @ T.T - NULL).norm() < 1e-6 * NULL.norm()


def test_unlink_zeroes_its_subspace(problem):
    U = problem.forget.subspace(2)
    assert (run(unlink, problem, rank=2).matrix @ U).abs().max() < 1e-12
    assert (run(unlink_oblique, problem, rank=2).matrix @ U).abs().max() < 1e-9


def test_oblique_is_optimal(problem):
    """No other map with T U = 0 moves the retained features less."""
    edit = run(unlink_oblique, problem, epsilon=1e-9, protect_null=False)
    U = problem.forget.subspace(1)
    best = (R @ (edit.matrix.T - torch.eye(D))).square().sum()
    for seed in range(20):
        b = edit.B + 0.1 * torch.randn(
            D, 1, generator=torch.Generator().manual_seed(seed), dtype=double
        )
        other = torch.eye(D, dtype=double) - U @ (b / (b.T @ U)).T
        assert (other @ U).abs().max() < 1e-9
        assert (R @ (other.T - torch.eye(D))).square().sum() >= best


def test_rayleigh_detectors_are_orthonormal_in_the_retained_metric(problem):
    edit = run(rayleigh, problem, rank=3, epsilon=0.1, protect_null=False)
    C_ = ridged(problem, 0.1)
    torch.testing.assert_close(edit.B.T @ C_ @ edit.B, torch.eye(3, dtype=double))
    torch.testing.assert_close(edit.A, C_ @ edit.B)


def test_rayleigh_with_an_infinite_ridge_is_unlink(problem):
    for k in (1, 2):
        got = run(rayleigh, problem, rank=k, epsilon=1e9, protect_null=False).matrix
        torch.testing.assert_close(got, run(unlink, problem, rank=k).matrix, atol=1e-6, rtol=0)


def test_rayleigh_picks_its_rank_from_the_spectrum(problem):
    values = scipy.linalg.eigh(F.numpy().T @ F.numpy() / len(F), ridged(problem, 1e-3).numpy())[0][
        ::-1
    ]
    for share in (0.5, 0.1, 0.01):
        edit = run(rayleigh, problem, share=share, protect_null=False)
        assert edit.rank == (values >= share * values[0]).sum()


def test_rayleigh_least_squares_form(problem):
    C_ = ridged(problem, 0.1)
    want = C_ @ torch.linalg.inv(C_ + problem.forget.matrix)
    got = run(rayleigh, problem, variant="lsq", epsilon=0.1, protect_null=False).matrix
    torch.testing.assert_close(got, want, atol=1e-8, rtol=1e-6)


def test_equation_15_as_printed_is_no_projection_and_says_so(problem):
    with pytest.warns(UserWarning, match="no projection"):
        T = run(rayleigh, problem, variant="paper").matrix
    assert (T @ T - T).abs().max() > 1e-3


def test_gf_order_is_the_papers(problem):
    """P_f (I − P_r) acts from the left on weights: x → x − P_f x + P_r P_f x, not its transpose."""
    T = run(gf, problem).matrix
    assert not torch.allclose(T, T.T, atol=1e-3)


def test_revival_minimises_what_it_claims(problem):
    edit = run(unlink, problem, rank=1)
    best = revival(edit, C, problem.weight_gram, rho=1e-3)

    def cost(c):
        return (edit.apply_to_weight(W) @ c.T - W @ C.T).square().sum() + 1e-3 * c.square().sum()

    for seed in range(10):
        noise = 0.05 * torch.randn(
            C.shape, generator=torch.Generator().manual_seed(seed), dtype=double
        )
        assert cost(best + noise) > cost(best)


def test_rece_leaves_less_to_revive_than_uce(problem):
    from erase_sd.algebra.certificate import recoverability

    before = recoverability(run(uce, problem, ridge=1e-6), C, problem.weight_gram).mean()
    after = recoverability(
        run(rece, problem, rounds=3, rho=1e-3, ridge=1e-6), C, problem.weight_gram
    ).mean()
    assert after > before


def test_rece_needs_weights(problem):
    with pytest.raises(ValueError, match="weight_gram"):
        run(rece, Problem(forget=problem.forget, retain=problem.retain, concepts=C, anchors=G))


def test_speed_agrees_with_its_formula_and_fixes_bos(problem):
    edit = run(speed, problem, threshold=0.6)
    values, vectors = np.linalg.eigh(R.numpy().T @ R.numpy() / len(R))
    v = vectors[:, values < 0.6]
    P, eye = v @ v.T, np.eye(D)
    c, a = C.numpy(), G.numpy()
    Cm, Am = c.T @ c / 2, a.T @ c / 2
    M = np.linalg.inv(Cm @ P + eye)
    k = NULL.numpy().T
    inner = np.linalg.pinv(k.T @ P @ M @ k, rcond=1e-10)
    want = (Am - Cm) @ P @ (eye - M @ k @ inner @ k.T @ P) @ M
    np.testing.assert_allclose(edit.matrix.numpy() - eye, want, atol=1e-8)


def test_leace_makes_the_means_equal(problem):
    T = run(leace, problem, tolerance=1e-12).matrix
    assert (T @ (problem.forget.mean - problem.retain.mean)).norm() < 1e-8
