"""The table of models is what its command writes."""

from pathlib import Path

from erase_sd.models.architectures import ARCHITECTURES
from lab.models_page import MODELS, main

PAGE = Path(__file__).parent.parent.parent / "docs" / "measured" / "models.md"


def test_the_page_is_what_the_command_would_write(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "models.md").read_text("utf-8") == PAGE.read_text("utf-8")


def test_every_architecture_is_in_it():
    assert list(MODELS) == [m.name for m in ARCHITECTURES]
    text = PAGE.read_text("utf-8")
    assert all(f"| `{m.name}` |" in text for m in ARCHITECTURES)
