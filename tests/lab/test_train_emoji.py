"""The training: stages that resume, weights that load, what its state looks like on disk."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from erase_sd._lazy import resolve
from erase_sd.emoji.models import IMAGE_TOWER, WEIGHTS
from erase_sd.emoji.world import load_world
from lab.second_judge import SecondJudge, load_second_judge
from lab.train_emoji.__main__ import main
from lab.train_emoji.plan import CONTINUED, PLANS, STAGES, TRAINED, USUAL, Plan, stage_id
from lab.train_emoji.sprites import build_sprites
from lab.train_emoji.stages import RUN
from lab.train_emoji.stages.judge2 import disturbed
from lab.train_emoji.trainer import Clock, Trainer

ROOT = Path(__file__).parents[2]


def test_training_runs_skips_what_is_done_and_exports_a_loadable_model(tmp_path):
    def train(*stages):
        command = [
            sys.executable,
            "-m",
            "lab.train_emoji",
            "--plan",
            "smoke",
            "--out",
            str(tmp_path),
        ]
        subprocess.run(
            [*command, "--stages", *stages], check=True, capture_output=True, timeout=300, cwd=ROOT
        )

    train("scenes", "vae", "clip", "judge", "latents", "unet", "vision", "export")
    unet = tmp_path / "weights" / "emoji-sd" / "unet" / "diffusion_pytorch_model.safetensors"
    first = unet.read_bytes()
    shutil.rmtree(tmp_path / "weights")
    train("unet", "export")  # finished stages cost no step and change nothing
    assert unet.read_bytes() == first
    command = [
        sys.executable,
        "-m",
        "lab.train_emoji",
        "--plan",
        "smoke",
        "--init",
        str(tmp_path / "weights"),
    ]
    subprocess.run(
        [*command, "--out", str(tmp_path / "more")],
        check=True,
        capture_output=True,
        timeout=300,
        cwd=ROOT,
    )
    about = json.loads((tmp_path / "more" / "weights" / "training.json").read_text())
    assert (
        about["seed"] == 1 and about["continues"]["seed"] == 0
    )  # other scenes, and where they started
    assert (
        tmp_path / "more" / "weights" / unet.relative_to(tmp_path / "weights")
    ).read_bytes() != first
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "weights" / "emoji-sd", local_files_only=True
    )
    assert pipe("a cat", num_inference_steps=2).images[0].size == (64, 64)


def test_a_continuation_keeps_the_image_tower_that_its_plan_does_not_train(tmp_path, monkeypatch):
    short = {k: v for k, v in PLANS["smoke"].items() if k not in TRAINED or k == "unet"}
    monkeypatch.setitem(PLANS, "generator", short)
    assert main(["--plan", "generator", "--init", str(WEIGHTS), "--out", str(tmp_path)]) == 0
    made, kept = tmp_path / "weights", WEIGHTS / "emoji-clip" / IMAGE_TOWER
    tower, before = (load_file(f) for f in (made / "emoji-clip" / IMAGE_TOWER, kept))
    assert tower.keys() == before.keys()
    assert all(torch.equal(tower[k], before[k]) for k in tower)
    unet = "emoji-sd/unet/diffusion_pytorch_model.safetensors"
    assert (made / unet).read_bytes() != (WEIGHTS / unet).read_bytes()


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    monkeypatch.setitem(PLANS, "tiny", PLANS["smoke"] | {"vae": Plan(30, 4, 1e-2)})

    def train(out, *, die_at=None):
        t = Trainer(out, plan="tiny", device="cpu", seed=0)
        torch.manual_seed(0)
        net, ema = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
        ema.load_state_dict(net.state_dict())

        def loss(step):
            if step == die_at:
                raise KeyboardInterrupt
            x = torch.from_numpy(t.rng(2, step).normal(size=(4, 3))).float()
            return {"loss": (net(x) + torch.randn(4, 1)).square().mean()}

        t.loop("vae", net, loss, ema=ema, save_every=0)
        return net, ema

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", die_at=17)
    (tmp_path / "cut" / "vae.state.tmp").write_bytes(
        b"half a save"
    )  # as a kill in the middle of one leaves
    again = train(tmp_path / "cut")
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(ValueError, match="choose another --out"):
        Trainer(tmp_path / "cut", plan="tiny", device="cpu", seed=1)


def test_stages_keep_their_numbers_and_names():
    """They seed the noise of a run that goes on, and name its files."""
    first = ("scenes", "vae", "clip", "judge", "latents", "unet", "vision", "export")
    assert STAGES[: len(first)] == first == USUAL and [stage_id(s) for s in first] == list(range(8))
    assert set(RUN) == set(STAGES) and set(CONTINUED) <= set(STAGES)
    assert all(callable(resolve(where)) for where in RUN.values())
    assert PLANS["cpu-second"]["unet"] == Plan(9_000, 64, 4e-4)
    assert PLANS["cpu-second"]["schedule"] == "trapezoid" and PLANS["cpu-second"]["emphasis"] == 1.0


def test_a_state_of_a_run_is_one_file_of_known_parts(tmp_path):
    """What a run that was begun elsewhere has left is what this code goes on from."""
    work = Trainer(tmp_path, plan="smoke", device="cpu", seed=3)
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "plan": "smoke",
        "seed": 3,
        "unet": 2,
    }
    net = torch.nn.Linear(2, 1)
    work.loop(
        "unet",
        net,
        lambda step: {"loss": net(torch.ones(1, 2)).square().sum()},
        ema=torch.nn.Linear(2, 1),
    )
    state = torch.load(tmp_path / "unet.state.pt", weights_only=True)
    assert set(state) == {"step", "net", "optimizer", "ema"} and state["step"] == 2
    long = Trainer(tmp_path / "long", plan="cpu-second", device="cpu", seed=2, steps=20)
    assert json.loads((tmp_path / "long" / "run.json").read_text())["unet"] is None
    assert (
        Trainer(tmp_path / "long", plan="cpu-second", device="cpu", seed=2, steps=40)
        .plan["unet"]
        .steps
        == 40
    )
    assert [round(long.schedule(x), 3) for x in (0, 0.5, 0.85, 1)] == [1, 1, 0.52, 0.02]


def test_the_clock_counts_over_interruptions(tmp_path, monkeypatch):
    now = iter((100.0, 107.5, 200.0, 203.0, 300.0))
    clock = SimpleNamespace(monotonic=lambda: next(now))  # other threads keep the true one
    monkeypatch.setattr("lab.train_emoji.trainer.time", clock)
    for stage in ("unet", "unet"):  # two processes: what passed after the last tick is lost
        told = Clock(tmp_path / "seconds.json")
        told.tick()
        told.start(stage)
        told.tick()
    told.start("export")
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"unet": 10.5, "export": 0.0}


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    work = Trainer(tmp_path, plan="smoke", device="cpu", seed=0)
    net = torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="vae: the loss became nan at step 0"):
        work.loop("vae", net, lambda step: {"loss": net(torch.full((1, 1), float("nan"))).sum()})


def test_the_second_judge_is_another_network_of_other_scenes(tmp_path):
    """Trained for two steps: its file loads, and none of its scenes is another stage's."""
    work = Trainer(tmp_path, plan="smoke", device="cpu", seed=0)
    seen = [set(map(repr, work.scenes(offset=i))) for i in range(3)]
    assert not seen[2] & (seen[0] | seen[1])
    resolve(RUN["judge2"])(work)
    state = load_file(tmp_path / "judge2.safetensors")
    assert all(v.dtype == torch.float16 for v in state.values())
    judge = load_second_judge(tmp_path / "judge2.safetensors")
    assert judge is not None and not judge.training
    assert load_second_judge(tmp_path / "none.safetensors") is None
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in SecondJudge(8).modules())


def test_disturbed_pictures_are_near_and_not_the_same():
    torch.manual_seed(0)
    x = torch.rand(64, 3, 16, 16) * 2 - 1
    y = disturbed(x)
    assert y.shape == x.shape and not torch.equal(x, y)
    assert (x - y).abs().mean() < 0.35


def test_sprites_are_picked_by_label_and_artist_and_reproducible(tmp_path):
    source = tmp_path / "emoji.zip"
    world = load_world()
    with zipfile.ZipFile(source, "w") as z:
        rows = ["file_name,artist,label"]
        for i, concept in enumerate(world.concepts):
            rows.append(f"{i}.webp,noto,{concept.emoji}")
            z.writestr(f"{i}.webp", bytes([i]))
        rows += ["x.webp,nobody,cat face", "y.webp,blob,cat face", "z.webp,blob,no such thing"]
        for name in "xyz":
            z.writestr(f"{name}.webp", b"-")
        z.writestr("metadata.csv", "\n".join(rows))
    outs = [tmp_path / "a.zip", tmp_path / "b.zip"]
    assert [build_sprites(source, out) for out in outs] == [len(world.concepts) + 1] * 2
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with zipfile.ZipFile(outs[0]) as z:
        assert z.read("noto/dog.webp") == bytes([world.names.index("dog")])
        assert "blob/cat.webp" in z.namelist() and len(z.namelist()) == len(world.concepts) + 1
    with zipfile.ZipFile(source, "w") as z:
        z.writestr("metadata.csv", "file_name,artist,label\n")
    with pytest.raises(ValueError, match="no picture in .* for: airplane"):
        build_sprites(source, outs[0])
