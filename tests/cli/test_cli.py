"""Help, wrong use, lists and cards: what needs no work."""

import pytest

from erase_sd.cli.main import COMMANDS
from tests.cli.conftest import call, one_line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_itself(command, capsys):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and "examples:" in out and f"erase-concept {command}" in out


def test_top_level_help_and_unknown_command(capsys):
    assert call(capsys, "--help")[0] == 0
    assert call(capsys)[0] == 2
    code, _, err = call(capsys, "errase")
    assert code == 2 and "did you mean erase" in one_line(err)
    assert call(capsys, "--version")[1].startswith("erase-sd ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--forget", ""], "forget prompts are empty"),
        (["--forget", "   "], "forget prompts are empty"),
        (["--forget", "file:/no/such/file"], "cannot read forget prompts"),
        (["--forget", "set:nothing"], "no prompt set 'nothing'"),
        (["--forget", "cat", "--retain", "cat"], "both to forget and to retain"),
        (["--forget", "cat", "--model", "/no/such/model"], "no such model"),
        (["--forget", "cat", "--model", "."], "no model_index.json"),
        (["--forget", "cat", "--rank", "900"], "rank 900 asked"),
        (["--forget", "cat", "--option", "colour=red"], "no option 'colour'"),
        (["--forget", "cat", "--option", "rank"], "NAME=VALUE"),
        (["--forget", "cat", "--option", "rank=many"], "expected a whole number"),
        (["--forget", "cat", "--toward", "dog"], "no target"),
        (["--forget", "cat", "--tokens", "few"], "token rule"),
        (["--forget", "cat", "--images", "-3"], "--images between"),
    ],
)
def test_wrong_use_is_one_line_exit_2_and_nothing_written(
    argv, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "erase", *argv, "--out", tmp_path / "out")
    assert code == 2, err
    assert message in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_lists(capsys):
    assert "rayleigh  (default)" in call(capsys, "methods")[1]
    assert "weapons" in call(capsys, "prompts", "list")[1]
    assert "a photo of gun" in call(capsys, "prompts", "show", "weapons")[1]
    code, _, err = call(capsys, "prompts", "show", "nothing")
    assert code == 2 and "no prompt set" in one_line(err)


def test_generate(capsys, tmp_path):
    argv = [
        "generate",
        "--prompt",
        "a cat",
        "--count",
        "2",
        "--steps",
        "2",
        "--out",
        tmp_path / "g.png",
    ]
    assert call(capsys, *argv)[0] == 0
    code, _, err = call(capsys, *argv)
    assert code == 2 and "--force" in one_line(err)


def test_card_tells_what_was_erased(cat, dog, tmp_path, capsys):
    import yaml

    both = (cat + dog).save(tmp_path / "both.safetensors")
    out = tmp_path / "README.md"
    assert (
        call(capsys, "card", both, "--base-model", "owner/name", "--license", "mit", "--out", out)[
            0
        ]
        == 0
    )
    text = out.read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (
        front["base_model"] == "owner/name"
        and front["license"] == "mit"
        and front["library_name"] == "diffusers"
    )
    assert "without cat, dog" in text and "### dog" in text and "states hold is gone" in text
    code, _, err = call(capsys, "card", both, "--out", out)
    assert code == 2 and "exists" in one_line(err)
    assert call(capsys, "card", both)[1].startswith("---\nlibrary_name")
    assert call(capsys, "card", tmp_path / "nothing")[0] in (1, 2)
