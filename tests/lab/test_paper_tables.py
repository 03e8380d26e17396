"""The papers' tables: what is missing is told first, and the rehearsal is the same command."""

import json

from erase_sd.eval.protocol import available, load_protocol
from erase_sd.operations.common import open_model
from lab import paper_setup
from lab.paper_setup import TABLES, Setup, check, stand_ins
from lab.paper_tables import main, page


def test_everything_missing_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    setup = Setup("emoji-sd", tmp_path / "nothing", tmp_path / "work")
    costs, problems = check(setup, list(TABLES), open_model("emoji-sd"))
    told = dict(p.split(": ", 1) for p in problems)
    assert not costs and set(told) == set(TABLES)
    assert "coco_30k.csv, a csv with columns prompt: prompt or caption" in told["coco"]
    assert "ring-a-bell.csv, a csv with columns prompt: sensitive prompt" in told["ring-a-bell"]
    assert "AIML-TUDA/i2p" in told["nudity"]
    assert "microsoft/resnet-50" in told["imagenette"]


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    stand_ins(tmp_path / "data")
    setup = Setup("emoji-sd", tmp_path / "data", tmp_path / "work", rehearse=True)
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr(paper_setup.shutil, "disk_usage", lambda path: usage)
    costs, problems = check(setup, ["ring-a-bell"], open_model("emoji-sd"))
    assert costs["ring-a-bell"].images == 6 and costs["ring-a-bell"].hours > 0
    assert len(problems) == 1 and problems[0].startswith("disk: expected 0.0 GB free")


def test_stand_ins_have_the_columns_that_are_asked_for(tmp_path):
    stand_ins(tmp_path)
    rows = load_protocol("ring-a-bell", data=tmp_path / "ring-a-bell.csv").rows
    assert [r.seed for r in rows] == [3, 4, 5] and rows[1].prompt == "a photo of a dog"
    assert {r.guidance for r in load_protocol("i2p-nudity", data=tmp_path / "i2p.csv").rows} == {
        3.0, 4.0, 5.0
    }  # fmt: skip
    assert len(load_protocol("coco-30k-fid-clip", data=tmp_path / "coco_30k.csv").rows) == 3


def test_the_rehearsal_ends_with_a_page_and_goes_on(tmp_path, capsys):
    command = ["--rehearse", "--work", str(tmp_path), "--only", "ring-a-bell"]
    assert main([*command, "--check"]) == 0
    assert "6 images" in capsys.readouterr().out
    assert not (tmp_path / "rehearsal" / "sd14.md").exists()
    assert main(command) == 0
    text = (tmp_path / "rehearsal" / "sd14.md").read_text()
    assert "a rehearsal" in text and text.count("Not run yet.") == len(TABLES) - 1
    assert "python -m lab.paper_tables --rehearse --only ring-a-bell" in text
    data = json.loads((tmp_path / "rehearsal" / "sd14.json").read_text())
    assert set(data["ring-a-bell"]["variants"]) == {"original", "rayleigh", "unlink"}
    drawn = sorted((tmp_path / "rehearsal").rglob("*.png"))
    before = {p: p.stat().st_mtime_ns for p in drawn if "images" in p.parts}
    assert main(command) == 0
    assert before and all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_the_page_says_how_much_less_of_each_label(tmp_path):
    counted = {"labels": {"FEET": 4}, "total": 4, "images with any": 2, "decrease": 0.0}
    less = {"labels": {"FEET": 1}, "total": 1, "images with any": 1, "decrease": 0.75,
            "decrease of images": 0.5, "decrease by label": {"FEET": 0.75}}  # fmt: skip
    result = {
        "protocol": {"name": "i2p-nudity", "hash": "h"},
        "variants": {"original": {"counts": counted}, "rayleigh": {"counts": less}},
    }
    distance = {"value": 2.0, "everything": 1.5, "images": 4, "real images": 4, "classes": {}}
    drawn = {
        "protocol": {"name": "imagenette-classwise", "hash": "h", "features": "inception-64"},
        "variants": {n: {"frechet to real": distance} for n in ("original", "rayleigh")},
    }
    told = page(Setup("m", tmp_path, tmp_path), {"imagenette": drawn}, "c", tmp_path).read_text()
    assert "over everything drawn, in inception-64: original 1.5, rayleigh 1.5." in told
    text = page(Setup("m", tmp_path, tmp_path), {"nudity": result}, "c", tmp_path).read_text()
    assert "| FEET | 4 | 1 (-75 %) |" in text and "743" in text


def test_imagenettes_distance_is_the_papers(tmp_path):
    stand_ins(tmp_path)
    setup = Setup("emoji-sd", tmp_path, tmp_path, rehearse=True)
    assert setup.protocol(TABLES["imagenette"]).features.startswith("inception-64:")
    assert setup.protocol(TABLES["coco"]).features.startswith("inception-2048:")
    assert setup.real(TABLES["imagenette"]) == tmp_path / "imagenette"


def test_every_table_is_a_protocol():
    assert {t.protocol for t in TABLES.values()} <= set(available())
