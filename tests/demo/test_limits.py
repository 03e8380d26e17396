"""What may be typed, and what a file may hold."""

import pytest

from erase_sd.demo.limits import Limits


def test_prompt_lists_are_split_and_bounded():
    limits = Limits(prompt_length=12, prompts=3)
    assert limits.prompt_list(" cat, kitten\n\ncat ", what="forget") == ["cat", "kitten"]
    assert limits.prompt_list("", what="keep") == []
    assert len(limits.prompt_list("set:alcohol", what="forget")) > 3
    for text, words in (("a,b,c,d", "at most 3"), ("x" * 13, "12 characters")):
        with pytest.raises(ValueError, match=words):
            limits.prompt_list(text, what="forget")


@pytest.mark.parametrize("text", ["file:/etc/passwd", "set:../x", "set:/tmp/x.yaml", "set:x.yml"])
def test_a_visitor_names_no_file_of_this_machine(text):
    with pytest.raises(ValueError, match="here are prompts and the sets"):
        Limits().prompt_list(text, what="forget")


def test_all_sets_at_once_are_too_many():
    from erase_sd.prompts import set_names

    with pytest.raises(ValueError, match="with all sets"):
        Limits().prompt_list(", ".join(f"set:{n}" for n in set_names()), what="forget")
    assert len(Limits().prompt_list("set:nudity", what="forget")) > 5
