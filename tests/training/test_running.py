"""Trainings as people run them: resumed, written, on the embedded model."""

import json

import pytest
import torch
from safetensors.torch import load_file

from erase_sd.cli.main import main
from erase_sd.emoji.judge import judge
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.operations.common import Run
from erase_sd.pipelines.loading import load_pipeline, model_path
from erase_sd.pipelines.sampling import generate
from erase_sd.training import METHODS, TRAINERS, loop
from erase_sd.training.bench import Bench, Task
from erase_sd.training.running import Plan, lora_file, run_plan, train_checkpoint, work_folder

SHORT = {"steps": 5, "batch": 2, "lr": 1e-2}


def task_of(method):
    return Task(("cat",), ("dog",) if method == "salun" else ())


def options_of(method):
    extra = {"images": 9, "draw_steps": 2} if method in ("fmn", "salun") else {"way": 3}
    return SHORT | extra


def trained(pipe, method, folder, **plan):
    bench = Bench(pipe, task_of(method), seed=1, work=folder)
    made = Plan(method, options_of(method), seed=1, save_every=0, **plan)
    lesson, history = run_plan(bench, made, "this", folder)
    return {n: p.detach().clone() for n, p in lesson.changed().items()}, history


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", TRAINERS)
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    tiny, method, tmp_path, monkeypatch
):
    start = {n: v.clone() for n, v in tiny.unet.state_dict().items()}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, told = trained(tiny, method, tmp_path / "a")
    tiny.unet.load_state_dict(start)
    real = loop._step

    def until_third(*args):
        value = real(*args)
        if len(done) == 2:
            raise Killed  # after the step has moved the weights, before its state is kept
        done.append(value)
        return value

    done = []
    with monkeypatch.context() as m:
        m.setattr(loop, "_step", until_third)
        with pytest.raises(Killed):
            trained(tiny, method, tmp_path / "b")
    tiny.unet.load_state_dict(start)  # what a new process finds
    again, history = trained(tiny, method, tmp_path / "b")
    assert len(done) == 2 and history.losses == told.losses and len(told.losses) == 5
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    assert any(not torch.equal(whole[n], start[n]) for n in whole)


def test_another_trainings_state_is_refused(tiny, tmp_path):
    trained(tiny, "esd-x", tmp_path)
    bench = Bench(tiny, task_of("esd-x"), work=tmp_path)
    with pytest.raises(ValueError, match="is another training's: expected that, got this"):
        run_plan(bench, Plan("esd-x", options_of("esd-x")), "that", tmp_path)


def test_a_training_that_diverges_says_so(tiny):
    bench = Bench(tiny, task_of("esd-x"))
    with pytest.raises(RuntimeError, match="the loss became .* lower the learning rate"):
        run_plan(bench, Plan("esd-x", {"steps": 9, "lr": 1e30, "way": 2}), "x")


@pytest.fixture(scope="module")
def leco(tmp_path_factory):
    """A LoRA of two steps, trained in two sittings by the command."""
    folder = tmp_path_factory.mktemp("leco")
    command = ["train", "--method", "leco", "--forget", "cat", "--seed", "3"]
    for pair in ("steps=2", "way=2", "lr=0.05"):
        command += ["--option", pair]
    assert main([*command, "--out", str(folder / "cat-free"), "--json"]) == 0
    return folder / "cat-free"


def test_the_result_is_a_plain_checkpoint_with_its_provenance(leco, embedded):
    about = json.loads((leco / "erasure.json").read_text())
    assert about["method"] == "leco" and about["options"]["steps"] == about["steps"] == 2
    assert about["forget"] == ["cat"] and about["seed"] == 3 and len(about["last losses"]) == 2
    assert about["base"] and not work_folder(leco).exists()
    own = {p.relative_to(embedded) for p in embedded.rglob("*") if p.is_file()}
    made = {p.relative_to(leco) for p in leco.rglob("*") if p.is_file()}
    assert {str(p) for p in made - own} == {"erasure.json"} and own <= made
    different = [p for p in own if (embedded / p).read_bytes() != (leco / p).read_bytes()]
    assert [str(p) for p in different] == ["unet/diffusion_pytorch_model.safetensors"]
    load_pipeline(leco)


def test_the_lora_is_the_checkpoint(leco, embedded):
    file = DiffusersFolder.open(embedded).denoiser_files[0].relative_to(embedded)
    before, after = load_file(embedded / file), load_file(leco / file)
    peft, kohya = (load_file(lora_file(leco, s)) for s in ("peft", "kohya"))
    modules = {k.removesuffix(".lora_A.weight") for k in peft if "lora_A" in k}
    assert len(modules) == about_attention(before)
    for module in modules:
        name = module.removeprefix("unet.")
        down, up = peft[f"{module}.lora_A.weight"], peft[f"{module}.lora_B.weight"]
        key = "lora_unet_" + name.replace(".", "_")
        assert torch.equal(kohya[f"{key}.lora_down.weight"], down)
        assert kohya[f"{key}.alpha"] == len(down)
        made = (before[f"{name}.weight"].float() + up @ down).to(after[f"{name}.weight"].dtype)
        torch.testing.assert_close(made, after[f"{name}.weight"], rtol=2e-3, atol=1e-5)
        assert up.any()
    pipe = load_pipeline(embedded)
    pipe.load_lora_weights(leco.parent, weight_name=lora_file(leco, "peft").name)


def about_attention(tensors):
    """How many linear layers of attention there are."""
    parts = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    return sum(n.endswith(parts) for n in tensors)


def test_refusals_come_before_any_work(tmp_path, capsys, embedded):
    esd = ["train", "--method", "esd-x", "--forget", "cat"]
    cases = [
        ([*esd, "--retain", "dog", "--out", str(tmp_path / "o")], "esd-x reads no retain"),
        ([*esd, "--toward", "dog", "--out", str(tmp_path / "o")], "esd-x reads no toward"),
        ([*esd, "--option", "rank=3", "--out", str(tmp_path / "o")], "has no option 'rank'"),
        (
            ["train", "--method", "salun", "--forget", "cat", "--out", str(tmp_path / "new" / "o")],
            "at least one --retain",
        ),
        ([*esd, "--out", str(embedded / "x")], "overlaps what is read"),
        ([*esd, "--out", str(tmp_path)], "exists; choose another --out"),
    ]
    for command, told in cases:
        assert main(command) == 2
        assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pictures_come_from_a_folder(tiny, tmp_path):
    from PIL import Image

    bench = Bench(tiny, Task(("cat",), pictures=tmp_path))
    with pytest.raises(ValueError, match="expected pictures .* got none"):
        bench.concept_pictures(["cat"], 8, 2)
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{i}.png")
    assert bench.concept_pictures(["cat"], 8, 2).shape == (2, 4, 8, 8)


WORKS = {  # what a short training of emoji-sd takes; the papers' rates are for a larger network
    "esd-x": {"lr": 1e-3, "steps": 8, "batch": 2, "way": 6},
    "fmn": {"lr": 1e-3, "steps": 15, "batch": 3, "draw_steps": 5, "eos": False},
}


@pytest.mark.parametrize("method", WORKS)
def test_a_short_training_costs_the_concept_more_than_bystanders(method, embedded):
    pipe = load_pipeline(model_path("emoji-sd"))
    others = ["pizza", "car", "key", "owl", "cactus", "guitar"]
    prompts = [f"a photo of a {n}" for n in ["cat"] * 6 + others]

    def accuracies():
        top = judge(generate(pipe, prompts, range(12), steps=6)).top
        hits = [t == w for t, w in zip(top, ["cat"] * 6 + others, strict=True)]
        return sum(hits[:6]) / 6, sum(hits[6:]) / 6

    before = accuracies()
    lesson, _ = run_plan(Bench(pipe, Task(("cat",)), guidance=3.0), Plan(method, WORKS[method]), "")
    pipe.unet.load_state_dict({**pipe.unet.state_dict(), **lesson.changed()})
    after = accuracies()
    assert before[0] - after[0] >= 0.5 > before[1] - after[1] + 0.2


def test_a_whole_command_resumes_to_the_same_bytes(tmp_path, monkeypatch, embedded):
    plan = Plan("esd-x", {"steps": 2, "way": 1, "lr": 1e-3}, save_every=0)
    real, calls = loop._save, []

    def once(*args):
        real(*args)
        calls.append(args)
        if len(calls) == 1:
            raise Killed

    with monkeypatch.context() as m:
        m.setattr(loop, "_save", once)
        with pytest.raises(Killed):
            train_checkpoint("emoji-sd", Task(("cat",)), plan, tmp_path / "a", Run())
    assert (work_folder(tmp_path / "a") / "state.pt").is_file() and not (tmp_path / "a").exists()
    for name in ("a", "b"):
        train_checkpoint("emoji-sd", Task(("cat",)), plan, tmp_path / name, Run())
    file = DiffusersFolder.open(embedded).denoiser_files[0].relative_to(embedded)
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert METHODS["esd-x"].described()["lr"] == 1e-5
