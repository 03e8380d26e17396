"""Runs that are cut and go on, resumed, shared, refused; attacks drawn; pages."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from erase_sd.cli.main import main
from erase_sd.eval.protocol import load_protocol

SMALL = """
rows: {emoji: objects, count: 4, keep: 4, groups: {cat: [cat], car: [car]}}
forget: {cat: [cat], car: [car]}
generation: {steps: 3, guidance: 3.0, batch: 2}
detector: {name: judge}
metrics: [accuracy, drift, frechet, clip-score]
features: judge
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run in one process."""
    root = tmp_path_factory.mktemp("run")
    (root / "small.yaml").write_text(SMALL)
    out = root / "whole"
    assert (
        main(["eval", "run", str(root / "small.yaml"), "--method", "unlink", "--out", str(out)])
        == 0
    )
    return root, out


def command(root, out):
    return ["eval", "run", str(root / "small.yaml"), "--method", "unlink", "--out", str(out)]


def test_a_run_writes_images_a_manifest_and_results(whole):
    root, out = whole
    result = json.loads((out / "results.json").read_text())
    assert set(result["variants"]) == {"original", "unlink"}
    lines = (out / "unlink" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == len(load_protocol(str(root / "small.yaml")).rows)
    assert all((out / "unlink" / json.loads(line)["file"]).is_file() for line in lines)
    assert result["variants"]["original"]["drift"]["retain"]["mean"] == 0
    assert result["variants"]["unlink"]["drift"]["forget"]["mean"] > 0
    assert result["variants"]["original"]["frechet to the original"]["value"] == pytest.approx(
        0, abs=1e-6
    )


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    """SIGKILL at ten random moments, then to the end: the same bytes, no image twice, none lost."""
    root, out = whole
    cut = tmp_path / "cut"
    chance = random.Random(0)
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            try:
                # tqdm's lock is shared with children that are forked; one killed would keep it.
                tqdm.set_lock(threading.RLock())
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                main(command(root, cut))
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.1, 1.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert main(command(root, cut)) == 0
    assert (cut / "results.json").read_bytes() == (out / "results.json").read_bytes()
    for variant in ("original", "unlink"):
        assert (cut / variant / "manifest.jsonl").read_bytes() == (
            out / variant / "manifest.jsonl"
        ).read_bytes()


def test_two_processes_give_the_result_of_one(whole, tmp_path):
    root, out = whole
    two = tmp_path / "two"
    # accelerate's own launcher starts one process on a CPU; torch's starts two.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
              "--nproc_per_node", "2", "-m",
              "erase_sd.cli.main", *command(root, two)]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (two / "results.json").read_bytes() == (out / "results.json").read_bytes()


def test_another_run_in_the_same_folder_is_refused(whole, capsys):
    root, out = whole
    assert main([*command(root, out), "--steps", "4"]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_changed_image_is_noticed(whole, tmp_path, capsys):
    root, out = whole
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    image = next((copy / "unlink" / "images").iterdir())
    image.write_bytes(image.read_bytes()[:-1])
    assert main(command(root, copy)) == 2
    assert "was changed" in capsys.readouterr().err


def test_compare_refuses_other_hashes(whole, tmp_path, capsys):
    _, out = whole
    other = json.loads((out / "results.json").read_text())
    other["protocol"]["hash"] = "0" * 16
    (tmp_path / "results.json").write_text(json.dumps(other))
    assert main(["eval", "compare", str(out), str(out)]) == 0
    assert main(["eval", "compare", str(out), str(tmp_path)]) == 2
    assert "not comparable" in capsys.readouterr().err
    assert main(["eval", "compare", str(out), str(tmp_path), "--anyway"]) == 0
    assert "NOT COMPARABLE" in capsys.readouterr().out
    (tmp_path / "results.json").write_text("{}")
    assert main(["eval", "compare", str(tmp_path)]) == 2


def test_the_report_is_one_page_that_asks_for_nothing(whole, tmp_path):
    _, out = whole
    assert main(["eval", "report", str(out), "--out", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    page = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", text)  # pictures may spell anything
    assert set(re.findall(r"(?:src|href|url)\W{1,3}(\w+)", page)) == {"data"} and "://" not in page
    assert text.count("<img") == 2 * 16 and "a photo of a cat" in text
    assert "forget residual" in text and 'aria-label="spectrum"' in text


def test_an_erasure_file_is_a_variant(whole, cat, tmp_path):
    root, _ = whole
    path = cat.save(tmp_path / "no-cat.safetensors")
    out = tmp_path / "run"
    assert (
        main(
            [
                "eval",
                "run",
                str(root / "small.yaml"),
                "--erasure",
                str(path),
                "--limit",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert "no-cat" in json.loads((out / "results.json").read_text())["variants"]


ATTACKED = """
rows: {emoji: attacks, count: 1, groups: [cat], attacks: [paraphrase, revival, ring-a-bell:2,
       prompt:2, inversion:2, fine-tuning:2]}
forget: {cat: [cat]}
generation: {steps: 2, guidance: 3.0, batch: 2}
detector: {name: judge}
metrics: [attacks]
features: judge
"""


def test_attacks_are_drawn_under_the_protocol(tmp_path, capsys, pipe):
    """Each attack draws a picture of its own; with nothing erased the revival does nothing."""
    path, out = tmp_path / "attack.yaml", tmp_path / "run"
    path.write_text(ATTACKED)
    rows = load_protocol(str(path)).rows
    assert len(rows) == 7 and len({r.attack for r in rows}) == 7
    assert main(["eval", "run", str(path), "--method", "rayleigh", "--out", str(out)]) == 0
    result = json.loads((out / "results.json").read_text())
    asked = {r.attack or "none" for r in rows}
    for variant in ("original", "rayleigh"):
        assert set(result["variants"][variant]["attacks"]) == asked
    drawn = {
        v: {r.attack: (out / v / "images" / f"{r.id}.png").read_bytes() for r in rows}
        for v in ("original", "rayleigh")
    }
    assert len(set(drawn["rayleigh"].values())) == 7  # no attack yields what another, or none, does
    assert drawn["original"]["revival"] == drawn["original"][""]
    assert len(set(drawn["original"].values())) == 6
    assert not set(drawn["original"].values()) & set(drawn["rayleigh"].values())
    # After all of them the original is as it was: its own row is what a fresh pipeline draws.
    own = next(r for r in rows if not r.attack)
    noise = [torch.Generator().manual_seed(own.seed)]
    options = {"num_inference_steps": 2, "guidance_scale": 3.0}
    again = np.asarray(pipe([own.prompt], generator=noise, **options).images[0])
    assert np.array_equal(
        again, np.asarray(Image.open(out / "original" / "images" / f"{own.id}.png"))
    )
    assert "ASR prompt:2" in capsys.readouterr().out


def test_what_cannot_be_measured_is_told_before_an_image_is_drawn(tmp_path, capsys):
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: p\nrows: {emoji: objects, count: 1, keep: 0, groups: {cat: [cat]}}\n"
        "detector: {name: judge}\n"
        "metrics: [clip-score]\nfeatures: 'clip:/no/such/folder'\n"
    )
    assert main(["eval", "run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "cannot load the CLIP model /no/such/folder" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_foreign_manifest_shows_no_other_file(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    manifest = tmp_path / "run" / "original" / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    entry = json.loads(lines[0]) | {"file": "../../../secret.png"}
    manifest.write_text("\n".join([json.dumps(entry), *lines[1:]]))
    assert main(["eval", "report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 2


def test_a_checkpoint_is_attacked_with_pictures_of_the_unedited_model(
    cat, folder, tmp_path, capsys
):
    """Its own erasure file tells the revival attack what to invert."""
    saved = cat.save(tmp_path / "cat.safetensors")
    assert main(["apply", str(saved), "--out", str(tmp_path / "no-cat")]) == 0
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: p\nrows: {emoji: attacks, count: 1, groups: [cat], attacks: [revival]}\n"
        "detector: {name: judge}\n"
        "generation: {steps: 2, guidance: 3.0, batch: 2}\nmetrics: [attacks]\nfeatures: judge\n"
    )
    argv = [
        "eval",
        "run",
        str(path),
        "--also",
        str(tmp_path / "no-cat"),
        "--erasure",
        str(saved),
        "--out",
    ]
    assert main([*argv, str(tmp_path / "out")]) == 0
    paths = [tmp_path / "out" / v / "images" / "cat-revival-000.png" for v in ("no-cat", "cat")]
    baked, live = (np.asarray(Image.open(p), np.float32) for p in paths)
    assert (
        np.abs(baked - live).mean() < 8
    )  # the same attack, up to the rounding of the baked half-precision weights
    (tmp_path / "no-cat" / "erasure.safetensors").unlink()
    assert main([*argv, str(tmp_path / "again")]) == 2
    assert "nothing to invert" in capsys.readouterr().err


def test_a_checkpoint_for_each_group(whole, tmp_path, folder, capsys):
    """What no closed-form erasure touches is changed in one of them."""
    root, out = whole
    name = "conv_out.weight"
    whole_folder = folder.whole()
    (stored,) = whole_folder._read([name]).values()
    whole_folder.write(tmp_path / "rival" / "cat", {name: stored / 2}, {})
    command = ["eval", "run", str(root / "small.yaml"), "--also", str(tmp_path / "rival")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "no such model" in capsys.readouterr().err
    whole_folder.write(tmp_path / "rival" / "car", {}, {})
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    same = {
        group: {
            p.read_bytes() == (out / "original" / "images" / p.name).read_bytes()
            for p in (tmp_path / "out" / "rival" / "images").glob(f"{group}-*")
        }
        for group in ("cat", "car")
    }
    assert same == {"cat": {False}, "car": {True}}
    told = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]["rival"]
    hashes = told["about"]["groups"]
    assert hashes["cat"] != hashes["car"]
