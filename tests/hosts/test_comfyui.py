"""The ComfyUI nodes: their pure functions here, the whole graph in ComfyUI where it is at hand.

`ERASE_SD_COMFYUI=/path/to/ComfyUI python -m pytest -m host tests/hosts`
"""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.hosted import architecture_of, check_fits
from erase_sd.fit.solve import fit
from erase_sd.models.ldm_names import UNET, to_ldm
from erase_sd.models.opening import open_checkpoint
from erase_sd.text.encoder import TextEncoder
from lab.published import TOKENIZER, configs
from lab.shapes import write_single

ROOT = Path(__file__).parent.parent.parent
NODES = ROOT / "hosts" / "comfyui"
WORDS = 49408  # in CLIP's vocabulary


@pytest.fixture(scope="module")
def wired():
    """The part of the nodes that imports nothing of ComfyUI."""
    spec = importlib.util.spec_from_file_location("erase_sd_wired", NODES / "wired.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Patcher:
    """As much of ComfyUI's ModelPatcher as is read: the unpatched weight comes first."""

    def __init__(self, tensors):
        self.tensors = tensors

    def get_key_patches(self, prefix):
        return {k: [(v, None), "a patch"] for k, v in self.tensors.items() if k.startswith(prefix)}


def in_ldm(weights):
    return {f"diffusion_model.{to_ldm(n)}": w for n, w in weights.items()}


def small(tmp_path, kind):
    path = write_single(tmp_path / "models" / "checkpoints" / "small.safetensors", kind, small=True)
    return open_checkpoint(path, tokenizer=str(TOKENIZER))


@pytest.mark.parametrize(("kind", "count"), [("sd1", 32), ("sd2", 32), ("sdxl", 35)])
def test_the_weights_that_read_text_are_found_by_our_names(wired, tmp_path, kind, count):
    weights = small(tmp_path, kind).weights()
    noise = {"diffusion_model.out.0.weight": torch.ones(2)}
    found = wired.base_weights(Patcher(in_ldm(weights) | noise))
    assert len(found) == count and found.keys() == weights.keys()
    assert all(torch.equal(found[n], weights[n]) for n in found)
    assert architecture_of(found).name == ("sdxl" if kind == "sdxl" else "sd")


def test_other_models_are_refused_by_name(wired):
    flux = {"diffusion_model.txt_in.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="expected a MODEL of Stable Diffusion 1, 2 or XL"):
        wired.base_weights(Patcher(flux))


def test_an_erasure_of_another_kind_or_width_is_refused(cat, tmp_path):
    with pytest.raises(ValueError, match="expected a MODEL of kind sd, got sdxl"):
        check_fits(cat, small(tmp_path, "sdxl").weights())
    wide = {n: torch.zeros(2, 1024) for n in small(tmp_path, "sd2").weights()}
    with pytest.raises(ValueError, match=f"text of width {cat.edit.width}, got one of 1024"):
        check_fits(cat, wide, allow_other_base=True)


class Clip:
    """As much of ComfyUI's text encoder as is read; its states are those of a tower of ours."""

    def __init__(self, tower):
        self.tower, self.transformer, self.max_length = tower, tower.model, tower.length
        self.special_tokens = {"pad": tower.pad}
        self.cond_stage_model = self.clip_l = self
        self.tokenizer = SimpleNamespace(clip_l=SimpleNamespace(tokenizer=tower.tokenizer))
        self.reset_clip_options()

    def set_clip_options(self, options):
        self.layer = options["layer"]

    def reset_clip_options(self):
        self.layer = None

    def encode(self, lines):
        ids = torch.tensor(lines)
        assert ids.shape[1] == self.max_length
        states, pooled = self.tower.read(ids, torch.ones_like(ids))
        spec = self.tower.spec
        return states[(spec.layer, *spec.also).index(self.layer)], pooled


def test_a_wired_encoder_gives_the_states_of_the_checkpoint(wired, tmp_path):
    (tower,) = TextEncoder.from_checkpoint(small(tmp_path, "sd1")).towers
    clip = Clip(tower)
    mine = wired.WiredTower(tower.spec, "clip_l", clip)
    for length in (None, 5):
        ours, theirs = (t.encode(["a cat", ""], length=length) for t in (tower, mine))
        assert len(ours[0]) == len(theirs[0]) == 2 and ours[2] == theirs[2]
        for a, b in zip(ours[0], theirs[0], strict=True):
            assert torch.allclose(a.states, b.states, atol=1e-5)
    assert clip.layer is None and mine.token_ids(["a cat"]) == tower.token_ids(["a cat"])
    assert [n for n, _ in mine.tensors] == [n for n, _ in tower.tensors]


def test_prompts_stand_one_a_line(wired):
    assert list(wired.lines(" cat \n\n a kitten\n")) == ["cat", "a kitten"]


@pytest.mark.parametrize("host, given", [("comfyui", set()), ("a1111", {"gradio"})])
def test_a_host_s_folder_imports_no_library_of_other_hosts(host, given):
    for path in (ROOT / "hosts" / host).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in getattr(node, "names", ())]
            names.append(getattr(node, "module", None) or "")
            heads = {name.split(".")[0] for name in names}
            assert not heads & ({"diffusers", "transformers", "gradio"} - given), path.name


def test_the_example_is_wired_throughout():
    flow = json.loads((NODES / "example_workflows" / "erase-prompts.json").read_text("utf-8"))
    nodes = {n["id"]: n for n in flow["nodes"]}
    assert {"EraseSDPrompts", "EraseSDApply"} <= {n["type"] for n in nodes.values()}
    links = {link[0]: link for link in flow["links"]}
    for node in nodes.values():
        for i, entry in enumerate(node["inputs"]):
            _, source, slot, target, index, kind = links[entry["link"]]
            assert (target, index) == (node["id"], i) and entry["type"] in (kind, "*")
            assert entry["link"] in nodes[source]["outputs"][slot]["links"]


# -- in ComfyUI itself ----------------------------------------------------------------------------


def known_to_the_host(path, *, tokenizer):
    """The file with CLIP's own vocabulary and a third layer, which the host takes for granted, and
    no decoder, which it knows at its published widths only.
    """
    tensors = load_file(path)
    for name in list(tensors):
        if name.startswith("first_stage_model."):
            del tensors[name]
        elif name.endswith("token_embedding.weight"):
            noise = torch.Generator().manual_seed(len(name))
            size = (WORDS, tensors[name].shape[1])
            tensors[name] = torch.randn(size, generator=noise).mul(0.02).half()
        elif m := re.match(r"(.*(?:layers|resblocks)\.)1(\..*)", name):
            tensors[f"{m[1]}2{m[2]}"] = tensors[name].flip(0).contiguous()
    save_file(tensors, path)
    return open_checkpoint(path, tokenizer=tokenizer)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def run(request, tmp_path_factory):
    """The example workflow and more, run by ComfyUI on a small model; and that model, opened."""
    host, kind = os.environ.get("ERASE_SD_COMFYUI"), request.param
    assert host, "set ERASE_SD_COMFYUI to a folder of ComfyUI with what it needs installed"
    work = tmp_path_factory.mktemp(kind)
    model = known_to_the_host(small(work, kind).path, tokenizer=f"{host}/comfy/sd1_tokenizer")
    shutil.copytree(NODES, work / "custom_nodes" / "erase-sd")
    encoder = TextEncoder.from_checkpoint(model)
    dog = fit(encoder, ["dog"], weights=model.weights())
    dog.save(work / "models" / "erasures" / "dog.safetensors")
    sizes = configs(kind, small=True)
    unet = {"model_channels": 32, "context_dim": sizes["unet"]["cross_attention_dim"]}
    if kind == "sdxl":
        adm = sizes["unet"]["projection_class_embeddings_input_dim"]
        unet |= {"transformer_depth": [0, 0, 1, 1, 2, 2], "adm_in_channels": adm}
    names = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    own = {"bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1, "num_hidden_layers": 3}
    text = {n: sizes[c] | own for n, c in names.items() if c in sizes}
    (work / "about.json").write_text(json.dumps({"unet": unet, "text": text}))
    (work / "output").mkdir()
    command = [sys.executable, str(Path(__file__).parent / "comfyui_graph.py"), host, kind, work]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    cat = fit(encoder, ["cat", "kitten"], weights=model.weights())
    return work, model, cat + dog


@pytest.mark.host
class TestInComfyUI:
    def test_the_graph_solves_what_the_command_line_solves(self, run):
        work, _, expected = run
        made = Erasure.load(work / "erasure.safetensors")
        assert made.names == ("cat", "dog") == expected.names
        assert made.text_encoder == expected.text_encoder and made.base == expected.base
        for stream, edit in made.right.items():
            ours = expected.right[stream].matrix
            assert float((edit.matrix - ours).norm() / (ours - torch.eye(len(ours))).norm()) < 1e-2

    def test_the_patched_weights_are_ours_and_no_other_is_touched(self, run):
        work, model, _ = run
        erasure = Erasure.load(work / "erasure.safetensors")
        weights = model.weights()
        expected = in_ldm(erasure.edit_weights({n: w.float() for n, w in weights.items()}))
        got = load_file(work / "result.safetensors")
        assert set(json.loads((work / "result.json").read_text())["patched"]) == set(expected)
        stored = load_file(model.path)
        for key, value in got.items():
            base = stored[UNET + key.removeprefix("diffusion_model.")].float()
            if key not in expected:
                assert torch.equal(value.float(), base), key
                continue
            want = expected[key].float()
            change = float((want - base).norm())
            assert float((value.float() - want).norm()) < 2e-3 * change + 1e-3 * float(
                base.abs().max()
            )

    def test_preflight_names_words_and_the_sampler_ran(self, run):
        work, _, _ = run
        assert "words moved most" in json.loads((work / "result.json").read_text())["report"]
        assert list((work / "output").glob("*.latent"))
