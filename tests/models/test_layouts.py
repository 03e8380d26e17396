"""Architectures and file layouts of real models, at reduced width and random weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd.artifact.erasure import Erasure
from erase_sd.cli.main import main
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.models.ldm_names import UNET, from_ldm, to_ldm
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.single_file import SingleFile
from erase_sd.text.encoder import TextEncoder
from lab.shapes import KINDS, TOKENIZER, write_folder, write_single


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    found = {}
    for kind in KINDS:
        folder = write_folder(root / f"{kind}-folder", kind, small=True, seed=1)
        found[kind] = folder, write_single(root / f"{kind}.safetensors", kind, small=True, seed=1)
    return found


def single(path):
    return open_checkpoint(path, tokenizer=str(TOKENIZER))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_read_as_diffusers_reads_it(models, kind):
    """Same cross-attention tensors by name.

    And the same text states as the pipeline itself computes.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    folder, file = models[kind]
    Pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipe = Pipeline.from_single_file(
        str(file), config=str(folder), dtype=torch.float32, local_files_only=True
    )
    ours = single(file)
    theirs = dict(pipe.unet.named_parameters())
    assert len(ours.where) > 10
    for name, weight in ours.weights().items():
        assert torch.equal(weight.float(), theirs[name])
    prompts = ["a photo of a cat", ""]
    a, b = TextEncoder.from_checkpoint(ours).encode(prompts), TextEncoder.of(pipe).encode(prompts)
    torch.testing.assert_close(a.states, b.states, atol=1e-5, rtol=1e-4)
    embeds = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(a.states[:1], embeds[0][:1], atol=1e-5, rtol=1e-4)
    if kind == "sdxl":
        torch.testing.assert_close(a.pooled, b.pooled, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.pooled[:1], embeds[2][:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ldm_names_go_there_and_back(models, kind):
    folder, file = models[kind]
    for name, (_, stored) in SingleFile.open(file).where.items():
        assert from_ldm(stored) == name and UNET + to_ldm(name) == stored
    assert set(SingleFile.open(file).where) == set(DiffusersFolder.open(folder).where)


def test_published_names():
    k, v = "transformer_blocks.0.attn2.to_k.weight", "transformer_blocks.0.attn2.to_v.weight"
    deep = "transformer_blocks.9.attn2.to_k.weight"
    pairs = {
        f"down_blocks.0.attentions.0.{k}": f"input_blocks.1.1.{k}",
        f"down_blocks.2.attentions.1.{v}": f"input_blocks.8.1.{v}",
        f"mid_block.attentions.0.{deep}": f"middle_block.1.{deep}",
        f"up_blocks.1.attentions.2.{k}": f"output_blocks.5.1.{k}",
        "add_embedding.linear_1.weight": "label_emb.0.0.weight",
    }
    for mine, theirs in pairs.items():
        assert to_ldm(mine) == theirs and from_ldm(UNET + theirs) == mine


@pytest.fixture(scope="module")
def sdxl(models):
    model = DiffusersFolder.open(models["sdxl"][0])
    encoder = TextEncoder.from_checkpoint(model)
    weights = model.weights()
    return (
        model,
        encoder,
        weights,
        fit(encoder, ["cat"], weights=weights, settings=Settings.of(method="rayleigh", rank=1)),
    )


def test_sdxl_erases_the_pooled_path_as_well(sdxl):
    model, encoder, weights, erasure = sdxl
    assert set(erasure.right) == {"tokens", "pooled"}
    new = erasure.edit_weights(weights)
    assert set(new) == set(weights)
    name = "add_embedding.linear_1.weight"
    width = encoder.widths["pooled"]
    assert torch.equal(new[name][:, width:], weights[name][:, width:])  # picture sizes stay
    null, cat = encoder.encode(["", "a photo of a cat"]).pooled.double()
    edit = erasure.right["pooled"]
    assert (edit.apply_to_features(null[None]) - null).norm() < 1e-3 * null.norm()
    assert (edit.apply_to_features(cat[None]) - cat).norm() > 0.01 * (cat - null).norm()


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_sdxl_lora_equals_the_baked_edit_in_diffusers(models, sdxl, style, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    from erase_sd.artifact.lora import save_lora
    from erase_sd.pipelines import LiveErasure, apply_to_pipeline

    _, _, weights, erasure = sdxl
    pipe = StableDiffusionXLPipeline.from_pretrained(
        models["sdxl"][0], dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)

    def draw():
        noise = torch.Generator().manual_seed(1)
        return pipe(
            "a photo of a cat", generator=noise, num_inference_steps=2, output_type="latent"
        ).images

    original = draw()
    live = apply_to_pipeline(pipe, erasure)
    baked = draw()
    live.take()
    assert torch.equal(draw(), original)
    apply_to_pipeline(pipe, erasure, runtime=True)
    torch.testing.assert_close(draw(), baked, atol=2e-4, rtol=1e-3)
    LiveErasure.of(pipe).take()
    assert (baked - original).abs().max() > 1e-3
    path = save_lora(erasure, weights, tmp_path / "lora.safetensors", style=style)
    keys = set(load_file(path))
    if style == "kohya":  # as sd-scripts and ComfyUI name SDXL's modules
        assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight" in keys
        assert "lora_unet_label_emb_0_0.lora_up.weight" in keys
        assert not any("down_blocks" in k for k in keys)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="x")
    torch.testing.assert_close(draw(), baked, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_erase_a_single_file(models, kind, tmp_path, capsys):
    """Same header and bytes but for the edit; equal to the folder's edit; loads; verifies.

    Comes back.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    folder, file = models[kind]
    out = tmp_path / "erased.safetensors"
    common = ["--tokenizer", str(TOKENIZER)]
    assert (
        main(
            [
                "erase",
                "--model",
                str(file),
                "--forget",
                "cat",
                "--rank",
                "1",
                "--out",
                str(out),
                "--keep-undo",
                *common,
            ]
        )
        == 0
    )
    before, after = file.read_bytes(), out.read_bytes()
    assert len(before) == len(after)
    header = 8 + int.from_bytes(before[:8], "little")
    assert before[:header] == after[:header]
    erasure = Erasure.load(tmp_path / "erased.erasure.safetensors")
    base, new = single(file), single(out)
    expected = erasure.edit_weights(base.weights())
    for name, weight in new.weights().items():
        assert torch.equal(weight, expected[name])
    old_all, new_all = load_file(file), load_file(out)
    changed = {k for k in old_all if not torch.equal(old_all[k], new_all[k])}
    assert changed == {stored for _, stored in base.where.values()}
    # diffusers loads it, and sees the same numbers
    Pipeline = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipe = Pipeline.from_single_file(
        str(out), config=str(folder), dtype=torch.float32, local_files_only=True
    )
    seen = dict(pipe.unet.named_parameters())
    assert all(torch.equal(seen[n], w.float()) for n, w in expected.items())
    # apply gives the same file; verify agrees; the undo file gives the original
    again = tmp_path / "again.safetensors"
    assert (
        main(
            [
                "apply",
                str(tmp_path / "erased.erasure.safetensors"),
                "--model",
                str(file),
                "--out",
                str(again),
                *common,
            ]
        )
        == 0
    )
    assert again.read_bytes() == after
    assert main(["verify", str(out), "--model", str(file), *common]) == 0
    assert main(["remove", str(out), "--out", str(tmp_path / "restored.safetensors")]) == 0
    assert (tmp_path / "restored.safetensors").read_bytes() == before
    assert file.read_bytes() == before


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_folders_of_every_dtype_variant_and_sharding(tmp_path, dtype, shards, capsys):
    variant = "fp16" if dtype == "F16" else ""
    base = write_folder(
        tmp_path / "m", "sd1", small=True, dtype=dtype, variant=variant, shards=shards
    )
    out = tmp_path / "out"
    args = ["--variant", variant] if variant else []
    assert (
        main(
            [
                "erase",
                "--model",
                str(base),
                "--forget",
                "cat",
                "--rank",
                "1",
                "--out",
                str(out),
                "--keep-undo",
                *args,
            ]
        )
        == 0
    )
    a, b = DiffusersFolder.open(base, variant=variant), DiffusersFolder.open(out, variant=variant)
    erasure = Erasure.load(out / "erasure.safetensors")
    expected = erasure.edit_weights(a.weights())
    for name, weight in b.weights().items():
        assert torch.equal(weight, expected[name]) and weight.dtype == a.weights()[name].dtype
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        out, dtype=torch.float32, variant=variant or None, local_files_only=True
    )
    name = next(iter(expected))
    assert torch.equal(dict(pipe.unet.named_parameters())[name], expected[name].float())
    assert main(["verify", str(out), "--model", str(base), *args]) == 0
    assert main(["remove", str(out), "--out", str(tmp_path / "back"), *args]) == 0
    for file in a.denoiser_files:
        assert (tmp_path / "back" / "unet" / file.name).read_bytes() == file.read_bytes()


def test_a_hub_id_comes_from_the_cache(tmp_path):
    """Offline, a cached snapshot is used as it is; what is not cached is one line, at once."""
    commit = "a" * 40
    cache = tmp_path / "hf" / "hub" / "models--someone--tiny"
    snapshot = write_folder(cache / "snapshots" / commit, "sd1", small=True)
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    blob = cache / "blobs" / "b"
    blob.parent.mkdir()
    weights.rename(blob)  # as the cache keeps files: a link to a blob
    weights.symlink_to("../../../blobs/b")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    before = blob.read_bytes()

    def run(*args):
        command = [
            sys.executable,
            "-m",
            "erase_sd.cli.main",
            "erase",
            "--forget",
            "cat",
            "--rank",
            "1",
            "--images",
            "0",
        ]
        env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [*command, *args], env=env, capture_output=True, text=True, timeout=200
        )

    assert run("--model", "someone/tiny", "--out", str(tmp_path / "out")).returncode == 0
    copy = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    assert not copy.is_symlink() and copy.read_bytes() != before == blob.read_bytes()
    for args in (["--model", "someone/absent"], ["--model", "someone/tiny", "--revision", "dev"]):
        done = run(*args, "--out", str(tmp_path / "no"))
        assert (
            done.returncode == 2 and "cannot be had" in done.stderr and done.stderr.count("\n") == 1
        )
    assert not (tmp_path / "no").exists()


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    base = write_folder(tmp_path / "m", "sd1", small=True, shards=2)
    index = base / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    good = json.loads(index.read_text())
    for name in ("../../secret.safetensors", "/etc/passwd", "weights.bin"):
        index.write_text(json.dumps(good | {"weight_map": dict.fromkeys(good["weight_map"], name)}))
        with pytest.raises(ValueError, match="same folder"):
            DiffusersFolder.open(base)
    index.write_text(
        json.dumps(good | {"weight_map": dict.fromkeys(good["weight_map"], "gone.safetensors")})
    )
    with pytest.raises(ValueError, match="missing"):
        DiffusersFolder.open(base)
    for text in ("[]", "{}", "\xff", '{"weight_map": []}'):
        index.write_text(text)
        with pytest.raises(ValueError):
            DiffusersFolder.open(base)


def test_a_pickle_is_refused_unless_asked_for(models, tmp_path, capsys):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(models["sd1"][1]), "epoch": 3}, file)
    args = [
        "erase",
        "--model",
        str(file),
        "--forget",
        "cat",
        "--rank",
        "1",
        "--tokenizer",
        str(TOKENIZER),
    ]
    assert main([*args, "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main([*args, "--out", str(tmp_path / "x.safetensors"), "--allow-pickle"]) == 0
    same = Erasure.load(tmp_path / "x.erasure.safetensors").edit_weights(
        single(models["sd1"][1]).weights()
    )
    assert all(
        torch.equal(w, same[n]) for n, w in single(tmp_path / "x.safetensors").weights().items()
    )


class Bomb:
    def __reduce__(self):
        return (open, ("/tmp/erase-sd-was-here", "w"))


def test_a_pickle_that_runs_code_does_not(tmp_path, capsys):
    import pickle

    file = tmp_path / "model.ckpt"
    file.write_bytes(pickle.dumps({"state_dict": Bomb()}))
    args = [
        "erase",
        "--model",
        str(file),
        "--forget",
        "cat",
        "--allow-pickle",
        "--out",
        str(tmp_path / "x.safetensors"),
    ]
    assert main(args) == 2
    assert "more than tensors" in capsys.readouterr().err
    assert not os.path.exists("/tmp/erase-sd-was-here")


def test_a_lora_or_a_refiner_is_no_checkpoint(tmp_path):
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="LoRA"):
        open_checkpoint(tmp_path / "lora.safetensors")
    save_file({UNET + "x": torch.zeros(1)}, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="no text encoder"):
        open_checkpoint(tmp_path / "unet.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a single-file checkpoint"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_an_erasure_of_another_architecture_is_refused(sdxl, pipe):
    from erase_sd.artifact.base import WrongBase
    from erase_sd.pipelines import apply_to_pipeline

    with pytest.raises(WrongBase):
        apply_to_pipeline(pipe, sdxl[3], allow_other_base=True)


def test_a_file_round_trip_keeps_both_streams(sdxl, tmp_path):
    erasure = sdxl[3]
    again = Erasure.load(erasure.save(tmp_path / "e.safetensors"))
    assert again.architecture == "sdxl"
    for stream, edit in erasure.right.items():
        assert torch.equal(again.right[stream].matrix, edit.matrix)


def test_a_rank_asked_for_holds_for_every_stream_that_can_have_it(sdxl, models):
    """The pooled stream has one vector a prompt and gets rank 1.

    The token states keep what was asked.
    """
    base = single(models["sdxl"][1])
    erasure = fit(
        TextEncoder.from_checkpoint(base),
        ["a cat"],
        weights=base.weights(),
        settings=Settings.of(method="unlink", rank=3),
    )
    assert {s: e.rank for s, e in erasure.right.items()} == {"tokens": 3, "pooled": 1}


def test_a_file_with_averaged_weights_is_refused_before_anything_is_written(
    models, tmp_path, capsys
):
    """Training's running average is the whole concept once more."""
    file = models["sd1"][1]
    state = load_file(file)
    name = next(n for n in state if n.startswith(UNET))
    state["model_ema." + name.removeprefix("model.").replace(".", "")] = state[name].clone()
    save_file(state, tmp_path / "ema.safetensors")
    out = tmp_path / "out.safetensors"
    argv = ["erase", "--model", str(tmp_path / "ema.safetensors"), "--tokenizer", str(TOKENIZER)]
    code = main([*argv, "--forget", "cat", "--images", "0", "--out", str(out)])
    assert code == 2 and "averaged copy of the weights" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "unet/model.onnx_data", "unet/weights.pb", "model.gguf", "x.h5"]
)
def test_other_copies_of_the_weights_are_left_behind_and_noticed(models, tmp_path, capsys, name):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(models["sd1"][0], base)
    (base / name).write_bytes(b"weights")
    out = tmp_path / "out"
    assert (
        main(["erase", "--model", str(base), "--forget", "cat", "--images", "0", "--out", str(out)])
        == 0
    )
    assert not (out / name).exists()
    assert main(["verify", str(out), "--model", str(base)]) == 0
    (out / name).write_bytes(b"weights")
    assert main(["verify", str(out), "--model", str(base)]) == 1
    assert "no other weights      FAILED" in capsys.readouterr().out


def test_an_index_over_one_shard_travels_along(tmp_path, capsys):
    """diffusers writes one where the file is named 00001-of-00001; without it nothing opens."""
    base = write_folder(tmp_path / "m", "sd1", small=True, shards=2)
    unet = base / "unet"
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    about = json.loads(index.read_text())
    merged, one = {}, "diffusion_pytorch_model-00001-of-00001.safetensors"
    for shard in sorted(set(about["weight_map"].values())):
        merged |= load_file(unet / shard)
        (unet / shard).unlink()
    save_file(merged, unet / one)
    index.write_text(json.dumps(about | {"weight_map": dict.fromkeys(merged, one)}))
    out = tmp_path / "out"
    argv = ["erase", "--model", str(base), "--forget", "cat", "--images", "0", "--out", str(out)]
    assert main(argv) == 0, capsys.readouterr().err
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(out, subfolder="unet", local_files_only=True)
    new = Erasure.load(out / "erasure.safetensors").edit_weights(
        DiffusersFolder.open(base).weights()
    )
    assert all(torch.equal(unet.state_dict()[n].float(), w.float()) for n, w in new.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_says_which_model_it_is_for_and_is_reproducible(models, kind, tmp_path):
    """A1111 and Forge hide a LoRA whose model they take for another."""
    from safetensors import safe_open

    from erase_sd.artifact.lora import save_lora

    base = single(models[kind][1])
    settings = Settings.of(method="unlink", rank=1)
    erasure = fit(
        TextEncoder.from_checkpoint(base), ["a cat"], weights=base.weights(), settings=settings
    )
    paths = [
        save_lora(erasure, base.weights(), tmp_path / f"{i}.safetensors", style="kohya")
        for i in range(3)
    ]
    assert len({p.read_bytes() for p in paths}) == 1
    with safe_open(paths[0], "pt") as f:
        about = f.metadata()
    if kind == "sdxl":  # the small models of the tests have widths of their own
        assert about["ss_base_model_version"] == "sdxl_base_v1-0"
        assert about["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert about["ss_network_dim"] == about["ss_network_alpha"] == str(erasure.rank)
    assert about["ss_v2"] in ("True", "False")


def test_export_for_a_fine_tune_is_asked_for_by_name(models, tmp_path, capsys):
    folder = models["sd1"][0]
    cat, lora = tmp_path / "cat", tmp_path / "lora.safetensors"
    argv = ["erase", "--model", str(folder), "--forget", "cat", "--images", "0", "--out", str(cat)]
    assert main(argv) == 0
    other = write_folder(tmp_path / "other", "sd1", small=True, seed=2)
    argv = ["export", str(cat), "--model", str(other), "--out", str(lora)]
    assert main(argv) == 2 and "--allow-other-base" in capsys.readouterr().err
    assert main([*argv, "--allow-other-base"]) == 0 and lora.is_file()
