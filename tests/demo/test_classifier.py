"""The classifier forgets a class and nothing else."""

import pytest

from erase_sd.demo.classifier import NETWORKS, QUICK, class_names, forget_class


@pytest.mark.parametrize(("network", "label"), [("mlp", "3"), ("emoji-clip", "pizza")])
def test_a_class_goes_and_the_others_stay(network, label):
    outcome = forget_class(network, label, "rayleigh")
    first, *others = outcome.classes
    assert first[0] == label
    assert first[1] > 0.8
    assert first[2] < 0.1
    assert [c for c, _, _ in others] == [c for c in class_names(network) if c != label]
    assert outcome.numbers["after"]["UA"] > 95
    assert outcome.numbers["after"]["RA"] > outcome.numbers["before"]["RA"] - 3
    assert 7 <= len(outcome.pictures) <= 12
    assert outcome.pictures[0][1].startswith(f"{label}, now ")
    assert f"class:{label}" in outcome.command


def test_what_is_not_offered_is_refused():
    for wrong in (("vgg", "3", "rayleigh"), ("mlp", "pizza", "rayleigh"), ("mlp", "3", "no")):
        with pytest.raises(ValueError, match=r"there are|has 0|here are"):
            forget_class(*wrong)
    assert "rayleigh" in QUICK
    assert all(class_names(n) for n in NETWORKS)
