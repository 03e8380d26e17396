"""Erasures on the Hub: its own client speaks to a stand-in for it, in processes of their own."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from erase_sd.artifact.erasure import Erasure

from .stand_in_hub import TOKEN, hub

# Every call of a process is a list of arguments; what each said comes back.
CALLS = """
import contextlib, io, json, sys
from erase_sd.cli.main import main
told = []
for argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    told.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""


def call(server, home, *calls, **environment):
    """What commands said that ran in one process with this Hub and no other."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    own |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    own["HF_HUB_DISABLE_XET"] = "1"  # large files by git's protocol instead of a store of its own
    own |= environment
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps([[str(a) for a in argv] for argv in calls])],
        env=own, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def server():
    with hub() as running:
        yield running


def test_what_is_pushed_is_what_everybody_loads(cat, server, tmp_path):
    path = cat.save(tmp_path / "cat.safetensors")
    (tmp_path / "lora.safetensors").write_bytes(b"a LoRA of it")
    about = ["--base-model", "owner/base", "--license", "mit"]
    push = ["push", path, "me/no-cat", *about, "--also", tmp_path / "lora.safetensors"]
    taken = ["remove", "me/no-cat", "--concept", "cat", "--out", tmp_path / "rest.safetensors"]
    carded = ["card", "me/no-cat"]
    lora = ["export", "me/no-cat", "--out", tmp_path / "peft.safetensors"]
    told = call(server, tmp_path / "home", push, taken, carded, lora, HF_TOKEN=TOKEN)
    assert told[0][0] == 0 and "me/no-cat/commit/" in told[0][1], told
    files = server.repositories["me/no-cat"]
    assert files.keys() == {"README.md", "erasure.safetensors", "erasure.json", "lora.safetensors"}
    assert files["erasure.safetensors"] == path.read_bytes() == cat.to_bytes()
    assert json.loads(files["erasure.json"]) == json.loads(json.dumps(cat.describe()))
    assert files["lora.safetensors"] == b"a LoRA of it" and server.private["me/no-cat"] is None
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["base_model"] == "owner/base" and front["base_model_relation"] == "adapter"
    assert front["license"] == "mit" and "concept-erasure" in front["tags"]
    assert "apply('me/no-cat', pipe)" in files["README.md"].decode()
    # The other commands took it from there.
    assert told[1][0] == 2 and "nothing would be left" in told[1][2], told[1]
    assert "# no-cat: without cat" in told[2][1].replace("\\", "")
    assert told[3][0] == 0 and (tmp_path / "peft.safetensors").is_file(), told[3]


def test_nothing_is_asked_or_sent_unless_it_is_named_and_allowed(cat, server, tmp_path):
    path = cat.save(tmp_path / "cat.safetensors")
    export = ["export", "--out", tmp_path / "x.safetensors"]
    told = call(
        server,
        tmp_path / "home",
        ["push", path, "me/no-cat"],
        [*export, "me/no-cat"],
        [*export, path],
        HF_HUB_OFFLINE="1",
        HF_TOKEN=TOKEN,
    )
    assert told[0][0] == 2 and "me/no-cat cannot be pushed to" in told[0][2], told[0]
    assert "offline mode is enabled" in told[0][2]
    assert told[1][0] == 2 and "of that Hub id cannot be had" in told[1][2], told[1]
    assert all(err.count("\n") == 1 for _, _, err in told[:2])
    assert told[2][0] == 0 and not server.asked


def test_what_the_hub_refuses_is_told_in_a_line(cat, server, tmp_path):
    path, missing = cat.save(tmp_path / "cat.safetensors"), tmp_path / "none.safetensors"
    told = call(
        server,
        tmp_path / "home",
        ["push", path, "me/no-cat"],
        ["export", "me/nothing", "--out", tmp_path / "x.safetensors"],
        ["push", path, "me/no-cat", "--also", missing],
        ["push", tmp_path, "me/no-cat"],
        HF_TOKEN="hf_wrong",
    )
    reasons = ("Invalid username or password", "cannot be had", "no such file", "use `hf upload`")
    for (code, _, err), reason in zip(told, reasons, strict=True):
        assert code == 2 and reason in err and err.count("\n") == 1, err
    assert not server.repositories


def test_a_name_here_is_never_looked_for_there(cat, tmp_path, monkeypatch):
    """A folder of a Hub id's form; offline, any look there would be an error."""
    (tmp_path / "me" / "no-cat").mkdir(parents=True)
    cat.save(tmp_path / "me" / "no-cat" / "erasure.safetensors")
    monkeypatch.chdir(tmp_path)
    assert Erasure.from_pretrained("me/no-cat").to_bytes() == cat.to_bytes()
    with pytest.raises(ValueError, match="no such erasure file: me/other.safetensors"):
        Erasure.from_pretrained("me/other.safetensors")
