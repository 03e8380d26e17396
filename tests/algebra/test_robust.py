import pytest
import torch

from erase_sd.algebra.certificate import recoverability, revivable
from erase_sd.algebra.methods import METHODS, rayleigh, unlink
from erase_sd.algebra.robust import harden
from erase_sd.artifact.base import weight_gram
from erase_sd.fit.solve import Settings, fit
from erase_sd.fit.task import Task


def rayleigh_solve(problem, **options):
    return rayleigh.solve(problem, rayleigh.Options(**options))


@pytest.fixture(scope="module")
def problem(encoder, weights):
    spec = METHODS["rayleigh"]
    gram = weight_gram(weights.values(), encoder.width)
    return Task(encoder, ("cat",), contexts=spec.contexts).problem(gram=gram)


def test_robust_leaves_less_to_revive_and_stops_at_its_tolerance(problem):
    solve = rayleigh_solve
    edit, history = harden(problem, solve, tolerance=0.3)
    assert history[0] > 0.5 > 0.3 >= history[-1]
    assert edit.rank == solve(problem).rank + len(history) - 1
    again = revivable(edit, problem.concepts, problem.weight_gram, problem.null)
    assert float(again.max()) == pytest.approx(history[-1])
    assert edit.gains is not None
    # the empty prompt is still protected
    assert (edit.apply_to_features(problem.null) - problem.null).norm() < 0.01 * problem.null.norm()


def test_no_round_is_the_method_itself(problem):
    solve = rayleigh_solve
    edit, history = harden(problem, solve, rounds=0)
    torch.testing.assert_close(edit.matrix, solve(problem).matrix)
    assert len(history) == 1


def test_revivable_bounds(problem):
    """Nothing edited: all comes back. All but the empty prompt removed: nothing does."""
    from erase_sd.algebra.edit import LowRankEdit
    from erase_sd.algebra.moments import orthonormal

    G, null, x = problem.weight_gram, problem.null, problem.concepts
    assert float(revivable(LowRankEdit.identity(problem.width), x, G, null).min()) > 0.999
    Q = orthonormal(null)
    only_null = LowRankEdit.from_matrix(Q @ Q.T)
    assert float(revivable(only_null, x, G, null).max()) < 1e-3
    assert float(recoverability(only_null, x, G).min()) > 0


def test_robust_refuses_what_is_no_projection(encoder, weights):
    with pytest.raises(ValueError, match="projects"):
        fit(encoder, ["cat"], weights=weights, settings=Settings("uce", robust=True))


def test_robust_needs_the_weights(encoder):
    with pytest.raises(ValueError, match="weights"):
        fit(encoder, ["cat"], settings=Settings(robust=True))


def test_robust_adds_the_synonyms_the_encoder_knows(encoder, weights):
    part = fit(encoder, ["cat"], weights=weights, settings=Settings(robust=True)).concepts[0]
    assert {"cat", "kitty"} <= set(part.forget)
    assert not {"dog", "tiger"} & set(part.forget)
    kept = fit(
        encoder, ["cat"], retain=["kitty"], weights=weights, settings=Settings(robust=True)
    ).concepts[0]
    assert "kitty" not in kept.forget
    assert (
        part.certificate["revivable"]
        < fit(encoder, ["cat"], weights=weights).concepts[0].certificate["revivable"]
    )


def test_what_unlink_removes_cannot_come_back(problem):
    edit = unlink.solve(problem, unlink.Options(rank=1))
    assert float(revivable(edit, problem.concepts, problem.weight_gram, problem.null).max()) == 0


@pytest.mark.parametrize("method", ["leace", "uce"])
def test_methods_without_a_rank_cannot_be_robust(encoder, weights, method):
    with pytest.raises(ValueError, match="needs a method that projects"):
        fit(encoder, ["cat"], weights=weights, settings=Settings(method, robust=True))
