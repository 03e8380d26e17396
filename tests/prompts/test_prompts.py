import pytest

from erase_sd.emoji.world import load_world
from erase_sd.prompts import clean, load_set, neutral, read_prompts, set_names


@pytest.mark.parametrize("name", set_names())
def test_every_set_loads(name):
    one = load_set(name)
    assert one.description and one.concepts and one.prompts()
    assert all(t.count("{}") == 1 for t in one.templates)
    assert not {n.lower() for n in one.neutral} & {n.lower() for c in one.concepts for n in c.nouns}
    assert all("{" not in p for p in one.prompts())


@pytest.mark.parametrize(("name", "family"), [("weapons", "weapon"), ("alcohol", "alcohol")])
def test_policy_sets_cover_the_embedded_world(name, family):
    nouns = {c.name for c in load_set(name).concepts}
    assert {c.name for c in load_world().family(family)} <= nouns


def test_own_sets(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("concepts: {pet: [cat, dog]}\ntemplates: ['my {}']\n")
    assert load_set(str(path)).prompts() == ["my pet", "my cat", "my dog"]
    assert read_prompts([f"set:{path}", "cow"], what="forget") == [
        "my pet",
        "my cat",
        "my dog",
        "cow",
    ]


@pytest.mark.parametrize(
    "text", ["", "a", "[1, 2]", "concepts: 3", "concepts: []", "x: [", "concepts: {a: b: c}"]
)
def test_broken_sets_are_one_error(tmp_path, text):
    path = tmp_path / f"broken{abs(hash(text))}.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="YAML|expected a mapping"):
        load_set(str(path))


def test_yaml_cannot_run_code(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"concepts: !!python/object/apply:os.system ['touch {tmp_path}/owned']")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_set(str(path))
    assert not (tmp_path / "owned").exists()


def test_clean():
    assert clean([" a ", "", "b", "a"]) == ["a", "b"]


def test_a_bare_word_is_never_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").write_text("secret")
    assert read_prompts(["cat"], what="forget") == ["cat"]


def test_neutral_prompts_name_no_object_of_the_policy_sets():
    text = " ".join(neutral())
    assert not any(
        f" {n} " in f" {text} "
        for s in ("weapons", "alcohol")
        for c in load_set(s).concepts
        for n in c.nouns
    )


@pytest.mark.parametrize(
    "text",
    [
        "concepts: {cat: kitty}",
        "concepts: [{cat: [kitten]}]",
        "concepts: [cat]\ntemplates: 'a {}'",
        "concepts: [cat]\ntemplates: ['a {noun}']",
        "concepts: [cat]\ntemplates: ['a']",
        "concepts: [cat]\nneutral: dog",
    ],
)
def test_sets_of_the_wrong_shape_are_not_taken_letter_by_letter(tmp_path, text):
    path = tmp_path / f"shape{abs(hash(text))}.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"expected"):
        load_set(str(path))


def test_a_set_brings_what_it_wants_kept():
    from erase_sd.prompts import neutral_of

    assert "a hammer" in neutral_of(["set:weapons", "cat"])


@pytest.mark.parametrize(
    "prompt", ["a \ud800 cat", "e" + "\u0301" * 300, "cat\x00", "\x1b[2Jcat", "a " * 20_000]
)
def test_text_that_no_tokenizer_should_see_is_one_line(prompt):
    with pytest.raises(ValueError, match="readable text|at most 20000 characters") as caught:
        clean([prompt])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_ordinary_text_of_any_script_is_taken():
    fine = ["Ǻngström", "ภาพถ่ายของแมว", "一只猫", "צילום של חתול", "👩‍👩‍👧 family", "a\tb"]
    assert clean(fine) == fine


def test_files_without_an_end_are_not_read(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    big = tmp_path / "big.txt"
    with open(big, "wb") as f:
        f.truncate(17_000_000)
    for path in ("/dev/zero", tmp_path / "pipe", big):
        with pytest.raises(ValueError, match="no regular file|larger than"):
            read_prompts([f"file:{path}"], what="forget")
    with pytest.raises(ValueError, match="no prompt set|no regular file"):
        load_set("/dev/zero.yaml")
