"""What the pages say: links lead somewhere, commands parse, code runs, numbers are measured."""

import argparse
import importlib
import json
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import erase_sd
from erase_sd.cli.main import COMMANDS, main

ROOT = Path(__file__).parent.parent
WRITTEN = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
WRITTEN += sorted((ROOT / "docs").glob("*.md"))
MEASURED = sorted((ROOT / "docs" / "measured").glob("*.md"))


def blocks(page, language=""):
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands():
    for page in WRITTEN:
        for block in blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                if "erase-concept" not in line:
                    continue
                words = shlex.split(line)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words = words[1:]
                if words[:1] == ["erase-concept"]:
                    yield pytest.param(words[1:], id=f"{page.name}: {line[:60]}")


class Parsed(Exception):
    """The command line was understood; nothing is run."""


@pytest.mark.parametrize("words", commands())
def test_every_command_in_a_page_parses_as_it_stands(words, monkeypatch, capsys):
    real = argparse.ArgumentParser.parse_args

    def parse(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    code = main(words)
    assert "Parsed" in capsys.readouterr().err and code == 1, words


def test_that_test_can_fail(capsys):
    assert main(["erase", "--forgt", "cat"]) == 2


def test_every_link_leads_somewhere():
    for page in [*WRITTEN, *MEASURED]:
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_and_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in [*WRITTEN, *MEASURED]:
        text = page.read_text("utf-8")
        for name in re.findall(r"`erase-concept ([a-z]+)", text):
            assert name in COMMANDS, f"{page.name}: {name}"
        for name in re.findall(r"`make ([a-z0-9-]+)`", text):
            assert re.search(rf"^{name}:", makefile, re.M), f"{page.name}: make {name}"


def test_measured_pages_say_that_they_are_generated():
    assert MEASURED
    for page in MEASURED:
        head = page.read_text("utf-8")[:600].lower()
        assert "generated" in head and "`" in head, page.name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 120


def test_the_python_of_the_readme_runs(pipe, embedded, tmp_path, monkeypatch):
    """On the embedded model in place of the folder that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd14").symlink_to(embedded)
    before = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {"pipe": pipe})
    assert (tmp_path / "sd14-safe" / "erasure.safetensors").is_file()
    assert all(bool((p == before[n]).all()) for n, p in pipe.unet.named_parameters())


def test_the_study_in_the_readme_is_the_study():
    data = json.loads((ROOT / "docs" / "measured" / "method-study.json").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = {
        cells[0].strip("* "): cells[1:]
        for line in readme.splitlines()
        if line.startswith("| ")
        and len(cells := [c.strip() for c in line.strip("|").split("|")]) == 5
    }
    kinds = ("object", "family", "artist", "ten")
    own = [data["numbers"][k]["rayleigh (the default)"]["harmonic"] for k in kinds]
    assert [float(c.strip("*")) for c in rows["the default"]] == [round(v, 3) for v in own]
    for i, kind in enumerate(kinds):
        others = {
            n: r["harmonic"]
            for n, r in data["numbers"][kind].items()
            if not n.startswith("rayleigh")
        }
        name = max(others, key=lambda n: others[n])
        value, told = re.fullmatch(
            r"\**([\d.]+)\** \((.+)\)", rows["best other method"][i]
        ).groups()
        assert (float(value), told) == (round(others[name], 3), name)
        published = data["numbers"][kind]
        literal = published.get("unlink (as published)", published["unlink"])["harmonic"]
        assert float(rows["Unlink as published"][i]) == round(literal, 3)


def without_example(public, root):
    """Names that occur in no example under a folder; examples are run as doctests."""
    code = "\n".join(
        line
        for path in root.rglob("*.py")
        for line in re.findall(r"^\s*(?:>>>|\.\.\.) (.*)$", path.read_text("utf-8"), re.M)
    )
    return [n for n in public if not re.search(rf"\b{n}\b", code)]


def test_every_public_name_has_an_example():
    packages = [p.name for p in pkgutil.walk_packages(erase_sd.__path__, "erase_sd.") if p.ispkg]
    modules = [erase_sd, *map(importlib.import_module, packages)]
    public = {n for m in modules for n in getattr(m, "__all__", ())} - {"__version__"}
    assert len(public) > 40
    assert not without_example(sorted(public), Path(erase_sd.__file__).parent)


def test_a_missing_example_is_seen(tmp_path):
    (tmp_path / "m.py").write_text('"""Of one.\n\n>>> shown(1)\n1\n"""\n')
    assert without_example(["shown", "hidden", "show"], tmp_path) == ["hidden", "show"]
