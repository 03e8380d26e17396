"""`erase-concept vision`: what it does, writes, and refuses."""

import json
import os
import subprocess
import sys

import pytest

from erase_sd.cli.main import main
from erase_sd.vision import METHODS, load_data, load_model
from erase_sd.vision.train import logits

FAST = ("--model", "mlp", "--train", "--epochs", "4", "--data", "digits")


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_unlearn_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "new.safetensors"
    argv = ["vision", "unlearn", *FAST, "--forget", "class:3", "--out", str(out), "--json"]
    assert main(argv) == 0
    report = told(capsys)
    assert report["after"]["UA"] > 90 > report["before"]["UA"] and report["method"] == "rayleigh"
    assert report["options"] == {
        "rank": 1,
        "epsilon": 0.1,
        "variant": "hard",
        "layers": "last",
        "recompute": False,
    }
    x = load_data("digits").test_x
    assert logits(load_model(f"mlp:{out}", 10, 1), x).shape == (len(x), 10)
    assert main(argv) == 2 and "exists" in capsys.readouterr().err
    assert main([*argv[:-3], "--dry-run"]) == 0
    assert "samples to forget" in capsys.readouterr().out
    assert main([*argv[:-1], "--force", "--option", "rank=1"]) == 0
    lines = capsys.readouterr().out
    assert "brought back by relearning" in lines and f"wrote {out}" in lines


def test_three_deletions_from_one_cache(tmp_path, capsys):
    """The reduced cache serves the model that was written.

    The first one does not, and says which would.
    """
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    whole, left = tmp_path / "whole.safetensors", tmp_path / "1.cache.safetensors"
    words = ["vision", "unlearn", "--data", "digits", "--method", "pgu", "--json"]
    argv = [
        *words,
        "--model",
        "mlp",
        "--train",
        "--epochs",
        "10",
        "--forget",
        "class:3",
        "--cache",
        str(whole),
    ]
    assert main([*argv, "--out", str(first), "--cache-out", str(left)]) == 0
    assert told(capsys)["after"]["UA"] >= 90
    made = whole.stat().st_mtime_ns
    again = [*words, "--model", f"mlp:{first}", "--forget", "class:5", "--out", str(second)]
    assert main([*again, "--cache", str(whole)]) == 2
    assert (
        "belongs to another model" in capsys.readouterr().err and whole.stat().st_mtime_ns == made
    )
    less = tmp_path / "2.cache.safetensors"
    assert main([*again, "--cache", str(left), "--cache-out", str(less)]) == 0
    report = told(capsys)
    assert report["after"]["UA"] >= 90 and report["after"]["TA"] > 70
    third = ["--model", f"mlp:{second}", "--forget", "class:0", "--out", str(tmp_path / "3")]
    assert main([*words, *third, "--cache", str(less)]) == 2
    assert "expected --out FILE.safetensors" in capsys.readouterr().err
    third[-1] += ".safetensors"
    assert main([*words, *third, "--cache", str(less)]) == 0
    assert told(capsys)["after"]["UA"] >= 90
    x, y = load_data("digits").test_x, load_data("digits").test_y
    taken = logits(load_model(f"mlp:{third[-1]}", 10, 1), x).argmax(1)
    known = [float((taken[y == c] == c).float().mean()) for c in range(10)]
    assert max(known[c] for c in (0, 3, 5)) < 0.3 and sum(known) > 4.5


def test_a_model_and_its_cache_take_their_places_together(tmp_path, monkeypatch):
    """Where the second cannot, the first does not either."""
    from erase_sd.models import placing

    true, calls = placing.forward, []

    def failing(folder, move):
        calls.append(move.name)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        true(folder, move)

    monkeypatch.setattr(placing, "forward", failing)
    out, left = tmp_path / "1.safetensors", tmp_path / "1.cache.safetensors"
    argv = ["vision", "unlearn", *FAST, "--forget", "class:3", "--method", "pgu"]
    argv += ["--cache", str(tmp_path / "c.safetensors"), "--out", str(out)]
    assert main([*argv, "--cache-out", str(left)]) == 1
    assert sorted(calls) == [left.name, out.name]
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["unlearn", "--model", "mlp", "--forget", "class:3"], "mlp is untrained"),
        (["unlearn", "--model", "nowhere", "--forget", "class:3"], "no model 'nowhere'"),
        (
            ["unlearn", "--model", "mlp", "--train", "--data", "x.npz", "--forget", "class:3"],
            "cannot read x.npz",
        ),
        (
            ["unlearn", "--model", "mlp", "--train", "--forget", "class:3", "--option", "rnk=2"],
            "has no option 'rnk'",
        ),
        (
            ["unlearn", "--model", "mlp", "--train", "--forget", "class:3", "--option", "rank"],
            "key=value",
        ),
        (
            ["unlearn", *FAST, "--forget", "class:3", "--method", "rl", "--cache", "c"],
            "rl takes no cache",
        ),
        (["unlearn", *FAST, "--forget", "class:3", "--cache-out", "c"], "give both"),
        (["unlearn", *FAST, "--forget", "class:3", "--size", "9"], "expected no size"),
        (
            ["unlearn", "--model", "mlp:f", "--epochs", "3", "--forget", "class:3"],
            "--epochs is of --train",
        ),
        (
            ["unlearn", "--model", "clip:f", "--forget", "class:3", "--out", "x.safetensors"],
            "written as a folder",
        ),
        (
            [
                "unlearn",
                *FAST,
                "--forget",
                "class:3",
                "--cache",
                "c",
                "--out",
                "new.safetensors",
                "--cache-out",
                "left.safetensors",
            ],
            "beside it, as",
        ),
        (["unlearn", *FAST, "--forget", "class:3", "--device", "x"], "expected --device"),
        (
            ["unlearn", *FAST, "--forget", "class:3", "--method", "mask", "--out", "m"],
            "nothing to write",
        ),
        (["unlearn", *FAST, "--forget", "class:3", "--classes-file", "none"], "no such file"),
        (["fly"], "no action 'fly'"),
    ],
)
def test_wrong_use(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["vision", *argv]) == 2
    err = capsys.readouterr().err
    assert (
        message in err
        and len([x for x in err.splitlines() if "step/s" not in x and x.strip()]) == 1
    )


def test_methods_are_listed(capsys):
    assert main(["vision", "methods", "--json"]) == 0
    found = told(capsys)
    assert set(found) == set(METHODS) and found["rayleigh"]["options"]["rank"] is None
    assert main(["vision", "methods"]) == 0
    assert "rank = auto" in capsys.readouterr().out


def test_help_and_choices_load_no_torch():
    script = (
        "import sys\nfrom erase_sd.cli.vision import run\n"
        "try:\n    run(['unlearn', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "two-sided" in done.stdout


def test_two_processes_gather_the_moments_of_one(tmp_path):
    script = tmp_path / "gather.py"
    script.write_text(
        "import sys, torch\n"
        "from accelerate import PartialState\n"
        "from erase_sd.vision import build, load_data\n"
        "from erase_sd.vision.features import collect, gathered\n"
        "from erase_sd.vision.layers import layers\n"
        "state = PartialState(cpu=True)\n"
        "model, x = build('mlp', 10, 1, seed=0).eval(), load_data('digits').train_x[:100]\n"
        "own = x[state.process_index :: state.num_processes]\n"
        "found = gathered(collect(model, layers(model), own))\n"
        "alone = collect(model, layers(model), x)\n"
        "assert state.num_processes == 2\n"
        "for name, groups in alone.items():\n"
        "    for a, b in zip(groups, found[name]):\n"
        "        torch.testing.assert_close(a.gram, b.gram, atol=1e-9, rtol=1e-9)\n"
        "        assert a.count == b.count\n"
        "state.wait_for_everyone()\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
