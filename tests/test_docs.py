"""What the README says stands in the pages it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_study_in_the_readme_is_the_study():
    page = (ROOT / "docs" / "method-study.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (?=object|family|artist|ten|Attacked)", page, flags=re.MULTILINE)[1:5]
    own, rival, published = [], [], []
    for section in sections:
        rows = {
            r[0].strip(): r[1].strip()
            for r in re.findall(r"^\| ([a-z][^|]*)\| ([\d.]+) ", section, re.MULTILINE)
        }
        own.append(rows["rayleigh (the default)"])
        rows = {name: value for name, value in rows.items() if not name.startswith("rayleigh")}
        rival.append(max(rows.values()))
        published.append(rows.get("unlink (as published)", rows.get("unlink")))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, values in (
        ("default", own),
        ("best rival", rival),
        ("Unlink as published", published),
    ):
        line = next(
            row for row in readme.splitlines() if row.startswith("|") and name in row.split("|")[1]
        )
        assert re.findall(r"0\.\d{3}", line) == values, line


def test_every_link_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_in_the_docs_exists():
    from erase_sd.cli.main import COMMANDS

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"erase-concept ([a-z]+)", text):
            assert name in COMMANDS, f"{page.name}: {name}"
        for name in re.findall(r"`make ([a-z-]+)`", text):
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"{page.name}: make {name}"
