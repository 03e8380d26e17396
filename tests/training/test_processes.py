"""Two real processes train as one that sees both their samples."""

import json
import os
import subprocess
import sys

import torch
from torch import nn

from erase_sd.training.lesson import Lesson, Options
from erase_sd.training.loop import generator_of, train

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launched(*words):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*LAUNCH, *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def lesson_of(loss):
    """A vector that goes after random targets."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5))
    return Lesson({"p": p}, lambda generator: loss(p, generator), lambda: {"p": p}, clip=1.0)


def missed(p, generator):
    return ((p - torch.randn(5, generator=generator)) ** 2).sum()


def test_two_move_by_the_mean_of_their_gradients(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "from erase_sd.processes import Share\n"
        "from erase_sd.training.lesson import Options\n"
        "from erase_sd.training.loop import train\n"
        "from tests.training.test_processes import lesson_of, missed\n"
        "share, lesson = Share.of('cpu'), lesson_of(missed)\n"
        "told = train(lesson, Options(steps=4, lr=0.1), seed=7, share=share)\n"
        "if share.process == 1:\n"
        f"    torch.save((lesson.changed(), told.losses), {str(tmp_path / 'second.pt')!r})\n"
    )
    launched(str(script))
    found, losses = torch.load(tmp_path / "second.pt", weights_only=True)

    steps = iter(range(4))

    def both(p, _):
        step = next(steps)
        return (missed(p, generator_of(7, step)) + missed(p, generator_of(7, step, 1))) / 2

    alone = lesson_of(both)
    told = train(alone, Options(steps=4, lr=0.1), seed=7)
    torch.testing.assert_close(found["p"], alone.changed()["p"].detach())
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(told.losses))


def test_the_command_writes_once(tmp_path):
    out = tmp_path / "x"
    told = launched(
        "-m", "erase_sd.cli.main", "train", "--method", "salun", "--forget", "cat",
        "--retain", "dog", "--option", "steps=2", "--option", "images=1",
        "--option", "draw_steps=2", "--out", str(out),
    )  # fmt: skip
    assert told.count("trained salun") == 1
    about = json.loads((out / "erasure.json").read_text("utf-8"))
    assert about["processes"] == 2 and about["steps"] == 2 and about["tensors"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]
