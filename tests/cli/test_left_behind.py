"""What is left of commands that are ended, killed or wrongly aimed; the doctor."""

import json
import os
import signal
import subprocess
import sys

import pytest

from lab.shapes import TOKENIZER, write_single
from tests.cli.conftest import FAST, call, one_line

QUICK = ["--forget", "cat", "--method", "unlink", "--rank", "1", *FAST]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return write_single(folder / "base.safetensors", "sd1", small=True)


def read(single):
    return ["--model", single, "--tokenizer", TOKENIZER]


def test_what_is_read_is_never_the_output(capsys, tmp_path, single, cat):
    own = cat.save(tmp_path / "cat.safetensors")
    before = own.read_bytes(), single.read_bytes()
    for argv in (
        ["export", own, *read(single), "--out", single],
        ["export", own, *read(single), "--out", own],
        ["card", own, "--out", own],
        ["apply", own, "--out", own.parent],
        ["generate", *read(single), "--prompt", "a cat", "--out", single],
        ["preflight", *read(single), *QUICK[:-2], "--plot", single],
    ):
        code, _, err = call(capsys, *argv, "--force")
        assert code == 2, argv
        assert "overlaps" in one_line(err) or "not replaced" in one_line(err)
    assert before == (own.read_bytes(), single.read_bytes())


def test_a_file_is_not_replaced_by_a_folder(capsys, tmp_path):
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "link").symlink_to("notes")
    for name in ("notes", "link"):
        code, _, err = call(capsys, "erase", *QUICK, "--out", tmp_path / name, "--force")
        assert code == 2 and "is a file; name a folder" in one_line(err)
    assert sorted(os.listdir(tmp_path)) == ["link", "notes"]
    assert (tmp_path / "link").read_text() == "mine"


def test_a_replaced_single_file_keeps_nothing_of_the_old_one(capsys, tmp_path, single):
    out = tmp_path / "x.safetensors"
    argv = ["erase", *read(single), *QUICK, "--out", out]
    assert call(capsys, *argv)[0] == 0
    (tmp_path / "x.before_after.png").write_bytes(b"of the cat")
    (tmp_path / "x.mine.txt").write_bytes(b"mine")
    own = tmp_path / "y.safetensors"
    own.write_bytes((tmp_path / "x.erasure.safetensors").read_bytes())
    assert call(capsys, "apply", own, *read(single), "--out", out, "--force")[0] == 0
    names = ["x.erasure.json", "x.erasure.safetensors", "x.mine.txt", "x.safetensors"]
    assert sorted(os.listdir(tmp_path)) == [*names, "y.safetensors"]
    assert call(capsys, "verify", out, *read(single))[0] == 0


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_signals(tmp_path, sign, single):
    """Ended between staging and place: nothing stays, or the next command removes it."""
    code = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the suite ignores
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from erase_sd.cli.main import main
from erase_sd.models import files
true = files.make_readable
def waiting(path):
    if str(path).startswith(os.path.dirname(sys.argv[-1])):  # and not in the cache
        print("here", flush=True)
        time.sleep(60)
    return true(path)
files.make_readable = waiting
sys.exit(main(sys.argv[1:]))
"""
    out = tmp_path / "new" / "x.safetensors"
    argv = [str(a) for a in ("erase", *read(single), *QUICK, "--out", out)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"here\n"
    process.send_signal(sign)
    said = process.communicate(timeout=60)[1].decode()
    if sign != signal.SIGKILL:
        assert process.returncode == 128 + sign
        assert said.strip().endswith("nothing was left half-written") and "Traceback" not in said
        assert not os.listdir(tmp_path)
        return
    assert [n.rpartition(".")[2] for n in os.listdir(tmp_path / "new")] == ["part"]
    done = [sys.executable, "-m", "erase_sd.cli.main", *argv]
    assert subprocess.run(done, capture_output=True, timeout=200).returncode == 0
    assert not [n for n in os.listdir(tmp_path / "new") if n.startswith(".")]


def test_the_doctor(capsys, tmp_path, monkeypatch):
    deep = tmp_path / "runs" / "one" / ".erase-sd-0123456789abcdef.part"
    deep.mkdir(parents=True)
    (deep / "0").write_bytes(b"x" * 5000)
    code, told, _ = call(capsys, "doctor", tmp_path, "--json")
    found = json.loads(told)
    assert code == 1 and found["left"] == 1
    assert found["found"][0] == {
        "path": str(deep), "bytes": 5000, "state": "left behind", "decided": False
    }  # fmt: skip
    code, told, _ = call(capsys, "doctor", tmp_path)
    assert code == 1 and "left behind" in told and "--remove" in told and deep.exists()
    assert call(capsys, "doctor", tmp_path, "--remove")[0] == 0
    assert not deep.exists() and deep.parent.exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "runs"))
    assert call(capsys, "doctor")[0] == 0
    code, _, err = call(capsys, "doctor", tmp_path / "none")
    assert code == 2 and "no such folder" in one_line(err)


def test_a_full_screen_is_told(tmp_path):
    """The result stands; who asked must know that nothing was heard of it."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "erase_sd.cli.main", "prompts", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
