"""What a problem protects, and what is none."""

import pytest
import torch

from erase_sd.algebra.methods import rayleigh, unlink_deflated
from erase_sd.algebra.moments import SecondMoment
from erase_sd.algebra.problem import Problem

double = torch.float64


def test_forget_inside_the_protected_span_is_refused():
    null = torch.eye(3, dtype=double)[:2]
    same = SecondMoment.of(null)
    with pytest.raises(ValueError, match="protected"):
        unlink_deflated.solve(
            Problem(forget=same, retain=SecondMoment.zeros(3), null=null), unlink_deflated.Options()
        )


def test_nothing_to_forget_is_refused():
    with pytest.raises(ValueError, match="nothing to forget"):
        Problem(forget=SecondMoment.zeros(3), retain=SecondMoment.zeros(3))


@pytest.mark.parametrize("width", [400, 40])
def test_other_layers_empty_prompt_is_protected_as_far_as_there_is_room(width):
    """Exactly in a wide encoder; in a narrow one by its strongest direction alone."""
    g = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 12, dtype=double)[:, None]
    f, r, null, other = (torch.randn(n, width, generator=g, dtype=double) for n in (6, 900, 8, 12))
    other = other * scale
    problem = Problem(
        forget=SecondMoment.of(f), retain=SecondMoment.of(r), null=null, other_nulls=other
    )
    T = rayleigh.solve(problem, rayleigh.Options()).matrix
    torch.testing.assert_close(null @ T.T, null, atol=1e-6, rtol=0)
    moved = (other @ T.T - other).norm(dim=1)
    assert bool((moved < 1e-5).all()) == (width == 400)
    assert problem.nulls.shape == (20, width)
