"""The extension for A1111 and Forge, in as much of them as it touches.

What they do is read off their code: callbacks and scripts whose errors are told and passed over,
the network under `model` or `forge_objects`, weights with LoRAs in them and a copy kept.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from erase_sd.algebra.edit import LowRankEdit
from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.erasure import Erasure
from erase_sd.models.ldm_names import to_ldm
from erase_sd.text.encoder import TextEncoder

from .test_comfyui import ROOT, small

SCRIPT = ROOT / "hosts" / "a1111" / "scripts" / "erase_concepts.py"
BOTH = pytest.mark.parametrize("forge", [False, True], ids=["a1111", "forge"])


class Component:
    """Of a page; also a context."""

    def __init__(self, *values, **options):
        self.values, self.options = values, options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Network(nn.Module):
    """A U-Net's modules that read text, under the original code's names."""

    def __init__(self, weights):
        super().__init__()
        for name, weight in weights.items():
            *path, last = to_ldm(name).removesuffix(".weight").split(".")
            here = self
            for part in path:
                if part not in dict(here.named_children()):
                    here.add_module(part, nn.Module())
                here = getattr(here, part)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias="label_emb" in name)
            linear.weight = nn.Parameter(weight.clone())
            here.add_module(last, linear)

    def forward(self, context, y=None):
        linears = {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear)}
        return {
            f"{n}.weight": m(y if n.startswith("label_emb") else context)
            for n, m in linears.items()
        }


class Host:
    """The program: jobs as it runs them, what it says of errors in `said`."""

    def __init__(self, monkeypatch, folder, forge):
        self.said, self.called, self.forge = [], [], forge
        own: dict[str, dict[str, Any]] = {
            "gradio": {n: Component for n in ("Accordion", "Checkbox", "Dropdown", "Slider")},
            "modules": {},
            "modules.paths": {"models_path": str(folder)},
            "modules.scripts": {"Script": object, "AlwaysVisible": object()},
            "modules.script_callbacks": {"on_cfg_denoiser": self.called.append},
            "modules.shared": {"sd_model": None},
        }
        for name, values in own.items():
            module = ModuleType(name)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, name, module)
            if "." in name:
                setattr(sys.modules["modules"], name.split(".")[1], module)
        spec = importlib.util.spec_from_file_location("erase_concepts.py", SCRIPT)
        self.extension = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, self.extension)
        spec.loader.exec_module(self.extension)
        self.script = self.extension.Script()

    def load(self, weights):
        network = Network(weights)
        inner = SimpleNamespace(diffusion_model=network)
        patcher = SimpleNamespace(model=inner, lora_loader=SimpleNamespace(backup={}))
        sys.modules["modules.shared"].sd_model = (
            SimpleNamespace(forge_objects=SimpleNamespace(unet=patcher), model=None)
            if self.forge
            else SimpleNamespace(model=inner)
        )
        return network, patcher

    def passed_over(self, function, *args):
        try:
            function(*args)
        except Exception as error:
            self.said.append(str(error))

    def step(self, job, **inputs):
        for callback in self.called:
            self.passed_over(
                callback, SimpleNamespace(denoiser=SimpleNamespace(p=job), sampling_step=0)
            )
        model = sys.modules["modules.shared"].sd_model
        inner = model.forge_objects.unet.model if self.forge else model.model
        with torch.no_grad():
            return inner.diffusion_model(**inputs)

    def job(self, *args):
        job = SimpleNamespace(extra_generation_params={})
        self.passed_over(self.script.process, job, *args)
        return job

    def done(self, job):
        self.passed_over(self.script.postprocess, job, None)


def erasure_of(model, seed=0):
    """Random, two-sided: what it says does not matter here, only where it acts."""
    noise = torch.Generator().manual_seed(seed)
    weights = model.weights()
    kind = model.architecture

    def edit(width):
        A = torch.linalg.qr(torch.randn(width, 2, generator=noise, dtype=torch.float64))[0]
        return LowRankEdit(A, A)

    streams = TextEncoder.from_checkpoint(model).widths
    value = next(n for n in weights if n.endswith("attn2.to_v.weight"))
    concept = ErasedConcept(
        f"thing{seed}", {s: edit(w) for s, w in streams.items()}, ("a thing",),
        left={value: edit(weights[value].shape[0])},
    )  # fmt: skip
    return Erasure((concept,), kind.name).bound_to(weights)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def world(request, tmp_path_factory):
    """A small model of a kind, an erasure of it, its inputs."""
    model = small(tmp_path_factory.mktemp(request.param), request.param)
    weights = {n: w.float() for n, w in model.weights().items()}
    erasure = erasure_of(model).bound_to(weights)
    noise = torch.Generator().manual_seed(1)
    width = weights[next(n for n in weights if "attn2" in n)].shape[1]
    inputs = {"context": torch.randn(2, 5, width, generator=noise)}
    if "add_embedding.linear_1.weight" in weights:
        wide = weights["add_embedding.linear_1.weight"].shape[1]
        inputs["y"] = torch.randn(2, wide, generator=noise)
    return weights, erasure, inputs


@pytest.fixture
def start(monkeypatch, tmp_path, world):
    (tmp_path / "erasures").mkdir()
    world[1].save(tmp_path / "erasures" / "thing.safetensors")
    return lambda forge: Host(monkeypatch, tmp_path, forge)


def expected(erasure, weights, inputs, network):
    other = Network(erasure.edit_weights(weights))
    for name, module in network.named_modules():
        if getattr(module, "bias", None) is not None:
            other.get_submodule(name).bias = module.bias
    with torch.no_grad():
        return other(**inputs)


def close(a, b):
    return all(torch.allclose(a[n], b[n], atol=1e-4) for n in a) and a.keys() == b.keys()


@BOTH
def test_pictures_are_drawn_by_the_edited_weights_and_say_so(start, world, forge):
    (weights, erasure, inputs), host = world, start(forge)
    network, _ = host.load(weights)
    plain = host.step(host.job(False, [], 1.0, False), **inputs)
    job = host.job(True, ["thing.safetensors"], 0.5, False)
    assert not job.extra_generation_params  # nothing is erased yet
    got = host.step(job, **inputs)
    assert close(got, expected(erasure.scaled(0.5), weights, inputs, network))
    assert not close(got, plain)
    assert job.extra_generation_params == {
        "Erasure files": "thing.safetensors",
        "Erasure scale": "0.5",
        "Erased concepts": "thing0",
    }
    assert close(host.step(job, **inputs), got)  # it is attached once
    host.done(job)
    after = host.step(host.job(False, [], 1.0, False), **inputs)
    assert all(torch.equal(after[n], plain[n]) for n in plain) and not host.said


@BOTH
def test_another_network_halfway_is_erased_too(start, world, forge):
    """A refiner, or another checkpoint for the high-resolution pass."""
    (weights, erasure, inputs), host = world, start(forge)
    host.load(weights)
    job = host.job(True, ["thing.safetensors"], 1.0, True)
    host.step(job, **inputs)
    others = {n: w.flip(0) for n, w in weights.items()}
    network, _ = host.load(others)
    assert close(host.step(job, **inputs), expected(erasure, others, inputs, network))


@BOTH
def test_what_cannot_be_erased_is_not_drawn(start, world, forge):
    (weights, _, inputs), host = world, start(forge)
    host.load({n: w + 1 for n, w in weights.items()})
    for args, told in (
        ([["thing.safetensors"], 1.0, False], "made for another base"),
        ([[], 1.0, False], "chosen from"),
        ([["gone.safetensors"], 1.0, False], "no such erasure file"),
    ):
        with pytest.raises(RuntimeError, match=f"nothing could be erased.*{told}"):
            host.step(host.job(True, *args), **inputs)
    # The next job finds nothing of it.
    assert host.step(host.job(False, [], 1.0, False), **inputs)


@BOTH
def test_the_base_is_told_from_a_lora_within(start, world, forge):
    """And the erasure acts on what the LoRA made of the weight."""
    (weights, erasure, inputs), host = world, start(forge)
    network, patcher = host.load(weights)
    merged = {n: w * 1.5 for n, w in weights.items()}
    for name, weight in merged.items():
        key = to_ldm(name)
        module = network.get_submodule(key.removesuffix(".weight"))
        if forge:
            patcher.lora_loader.backup[f"diffusion_model.{key}"] = weights[name]
        else:
            module.network_weights_backup = weights[name]
        module.weight = nn.Parameter(weight)
    got = host.step(host.job(True, ["thing.safetensors"], 1.0, False), **inputs)
    assert close(got, expected(erasure, merged, inputs, network))


def test_a_job_within_a_job_keeps_what_is_erased(start, world):
    (weights, _, inputs), host = world, start(False)
    host.load(weights)
    job = host.job(True, ["thing.safetensors"], 1.0, False)
    got = host.step(job, **inputs)
    inner = SimpleNamespace(extra_generation_params={})  # its runner leaves this script out
    assert close(host.step(inner, **inputs), got)
    other = host.job(False, [], 1.0, False)  # and this one's does not
    host.done(other)
    assert close(host.step(job, **inputs), got)


def test_the_page_offers_the_files_and_takes_them_from_a_picture(start, world):
    host = start(False)
    enabled, files, scale, other = host.script.ui(False)
    assert files.values == (["thing.safetensors"],) and scale.options["value"] == 1.0
    told = {"Erasure files": "a.safetensors; b.safetensors", "Erasure scale": "0.5"}
    (_, on), (_, chosen), (_, name) = host.script.infotext_fields
    assert on(told) and chosen(told) == ["a.safetensors", "b.safetensors"] and name in told
    assert not on({}) and chosen({}) == [] and other is not enabled
