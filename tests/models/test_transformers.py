"""Every architecture of transformers at reduced width, against diffusers' own pipelines.

What the real pipeline feeds the matrix that reads the text is caught on its way in; nothing of ours
is asked how a prompt is put into words.
"""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline

from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.lora import lora_tensors, save_lora, second_file
from erase_sd.cli.main import main
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.architectures import SECOND
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.models.comfyui_names import COMFYUI
from erase_sd.pipelines import LiveErasure, apply_to_pipeline
from erase_sd.text.encoder import TextEncoder
from erase_sd.text.fingerprint import fingerprint_of
from tests.models import tiny, tiny_video


def networks(pipe):
    second = getattr(pipe, "transformer_2", None)
    return [pipe.transformer] if second is None else [pipe.transformer, second]


PROMPT = "a photo of a cat"


@dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        build: Makes a pipeline.
        name: What the registry calls it.
        read: How many positions of the prompt's line its network reads, by its `encode_prompt`;
            None for all.
        options: What its call needs besides.
        lora: Styles of LoRA that its pipeline loads.
    """

    build: Callable[[], Any]
    name: str
    read: Callable[[Any], int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    lora: tuple[str, ...] = ("peft",)


def masked(pipe: Any) -> int:
    mask = pipe.encode_prompt(PROMPT)[1]
    return int(mask.sum()) if mask is not None else len(pipe.encode_prompt(PROMPT)[0][0])


def reading(place: int, **options: Any) -> Callable[[Any], int]:
    """Ones in the mask that `encode_prompt` gives at a place, without guidance."""
    options = {"do_classifier_free_guidance": False} | options
    return lambda pipe: int(pipe.encode_prompt(PROMPT, **options)[place].sum())


INSTRUCTION = (
    inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
)
BOTH = ("peft", "comfyui")  # ComfyUI's names, which these pipelines know as well
UNGUIDED = {"guidance_scale": 1.0}
VIDEO = {**UNGUIDED, "num_frames": 1}
CASES = {
    "sd3": Case(tiny.sd3, "sd3", options=UNGUIDED),
    "sd3.5": Case(tiny.sd35, "sd3", options=UNGUIDED),
    "flux": Case(tiny.flux, "flux"),
    "flux-kontext": Case(tiny.kontext, "flux", options={"max_area": 256}),
    "pixart": Case(
        tiny.pixart,
        "pixart",
        reading(1),
        {**UNGUIDED, "use_resolution_binning": False},
        lora=(),
    ),
    "qwen-image": Case(tiny.qwen_image, "qwen-image", masked, {"true_cfg_scale": 1.0}, BOTH),
    "z-image": Case(
        tiny.z_image,
        "z-image",
        lambda pipe: len(pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0][0]),
        {"guidance_scale": 0.0},
        BOTH,
    ),
    "chroma": Case(tiny.chroma, "chroma", reading(2), UNGUIDED),
    "lumina2": Case(tiny.lumina2, "lumina2", reading(1), UNGUIDED),
    "sana": Case(
        tiny.sana,
        "sana",
        reading(1, complex_human_instruction=INSTRUCTION),
        {**UNGUIDED, "use_resolution_binning": False, "height": 32, "width": 32},
    ),
    "ltx": Case(tiny_video.ltx, "ltx", reading(1), {**VIDEO, "height": 32, "width": 32}, BOTH),
    "wan": Case(
        tiny_video.wan,
        "wan",
        lambda pipe: int(pipe.encode_prompt(PROMPT)[0].abs().amax(-1).gt(0).sum()),
        VIDEO,
    ),
    "wan2.2": Case(
        tiny_video.wan22,
        "wan",
        lambda pipe: int(pipe.encode_prompt(PROMPT)[0].abs().amax(-1).gt(0).sum()),
        VIDEO,
    ),
    "flux2-klein": Case(tiny.flux2_klein, "flux2-klein", options=UNGUIDED, lora=BOTH),
    "flux2": Case(tiny.flux2_dev, "flux2", lora=BOTH),
}


@dataclass(frozen=True, eq=False)
class Model:
    case: Case
    pipe: Any
    encoder: TextEncoder
    erasure: Any

    def draw(self, prompt=PROMPT, pipe=None):
        pipe = pipe or self.pipe
        return pipe(
            prompt=prompt,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **{"height": 16, "width": 16, **self.case.options},
        )[0]

    def caught(self, prompt=PROMPT):
        """What each matrix that reads text is fed, and what it makes of it, by its name."""
        found: dict[str, tuple[Any, Any]] = {}
        handles = []
        for site in LiveErasure.of(self.pipe).sites:

            def catch(module, args, output, name=f"{site.stream}{' 2' * site.second}"):
                rows = args[0].detach().flatten(0, -2), output.detach().flatten(0, -2)
                found.setdefault(name, rows)

            network = networks(self.pipe)[-1 if site.second else 0]
            module = network.get_submodule(site.module.removeprefix(SECOND))
            handles.append(module.register_forward_hook(catch))
        self.draw(prompt)
        for handle in handles:
            handle.remove()
        return found


@pytest.fixture(scope="module", params=CASES)
def model(request):
    torch.manual_seed(0)
    case = CASES[request.param]
    pipe = case.build()
    with torch.no_grad():  # not zero: adaLN outputs start at zero and would hide the text
        for p in itertools.chain(*(n.parameters() for n in networks(pipe))):
            p.copy_(torch.randn(p.shape) * (0.3 if p.ndim > 1 else 0.1) + (p.ndim == 1))
    pipe.set_progress_bar_config(disable=True)
    encoder = TextEncoder.of(pipe)
    weights = LiveErasure.of(pipe).originals()
    erasure = fit(encoder, ["cat"], weights=weights, settings=Settings("unlink-oblique"))
    return Model(case, pipe, encoder, erasure)


@pytest.fixture
def saved(model, tmp_path):
    model.pipe.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_features_are_those_that_the_pipeline_feeds_the_network(model):
    assert model.encoder.architecture.name == model.case.name
    ours, fed = model.encoder.encode([PROMPT]), model.caught()
    assert {key.split()[0] for key in fed} == model.encoder.widths.keys()
    assert len(fed) == len(model.encoder.widths) * len(networks(model.pipe))
    for stream, (theirs, _) in fed.items():
        rows = ours.rows("all", stream.split()[0])
        torch.testing.assert_close(theirs[: len(rows)], rows, atol=1e-5, rtol=1e-4)
    read = model.case.read(model.pipe) if model.case.read else len(fed["tokens"][0])
    assert len(ours.rows("all")) == read


def test_batches_and_short_lines_have_the_same_states(model):
    prompts = [PROMPT, "", "dog"]
    alone = [model.encoder.encode([p]).rows("words+eos") for p in prompts]
    torch.testing.assert_close(
        model.encoder.encode(prompts).rows("words+eos"), torch.cat(alone), atol=1e-5, rtol=1e-4
    )
    if model.encoder.towers[-1].spec.causal:
        short = model.encoder.encode(prompts, length=1).rows("words+eos")
        torch.testing.assert_close(short, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_the_concept_is_gone_from_what_the_network_reads_and_the_empty_prompt_stays(model):
    before, empty = model.caught(), model.caught("")
    apply_to_pipeline(model.pipe, model.erasure, runtime=False)
    after, still = model.caught(), model.caught("")
    LiveErasure.of(model.pipe).take()
    own = model.encoder.encode([PROMPT]).mask("last-subject")[0].nonzero()[:, 0]
    null = model.encoder.encode([""])
    for stream in before:
        read = len(null.rows("all", stream.split()[0]))
        kept = still[stream][1][:read], empty[stream][1][:read]
        torch.testing.assert_close(*kept, atol=1e-3, rtol=1e-3)
        at = own if stream.startswith("tokens") else slice(None)
        moved = (after[stream][1] - before[stream][1])[at].norm(dim=1)
        assert bool((moved > 0.01 * before[stream][1][at].norm(dim=1)).all())
    assert model.erasure.concepts[0].certificate["null_change"] < 1e-3


def test_baked_is_runtime_is_lora_and_goes_away(model, tmp_path):
    live = LiveErasure.of(model.pipe)
    original, weights = model.draw(), live.originals()
    apply_to_pipeline(model.pipe, model.erasure, runtime=False)
    baked = model.draw()
    live.take()
    assert (baked - original).abs().max() > 1e-4
    assert torch.equal(model.draw(), original)
    apply_to_pipeline(model.pipe, model.erasure, runtime=True)
    torch.testing.assert_close(model.draw(), baked, atol=2e-3, rtol=2e-3)
    live.take()
    assert torch.equal(model.draw(), original)
    for style in model.case.lora:
        file = save_lora(model.erasure, weights, tmp_path / f"{style}.safetensors", style=style)
        model.pipe.load_lora_weights(str(file))
        if len(networks(model.pipe)) > 1:
            model.pipe.load_lora_weights(str(second_file(file)), load_into_transformer_2=True)
        torch.testing.assert_close(model.draw(), baked, atol=2e-3, rtol=2e-3)
        model.pipe.unload_lora_weights()
        assert torch.equal(model.draw(), original)


def test_comfyui_has_a_name_for_every_matrix(model):
    weights = LiveErasure.of(model.pipe).originals()
    peft = lora_tensors(model.erasure, weights)
    if model.case.name not in COMFYUI:
        with pytest.raises(ValueError, match="export --style peft"):
            lora_tensors(model.erasure, weights, style="comfyui")
        return
    theirs = lora_tensors(model.erasure, weights, style="comfyui")
    assert all(key.startswith("diffusion_model.") for key in theirs)
    for ours, value in zip(peft.values(), theirs.values(), strict=True):
        assert torch.equal(ours, value)
    with pytest.raises(ValueError, match="export --style comfyui or peft"):
        lora_tensors(model.erasure, weights, style="kohya")


def test_a_folder_of_it_is_erased_loads_plain_and_verifies(model, saved, tmp_path, capsys):
    base, out = str(saved), str(tmp_path / "out")
    command = ["erase", "--model", base, "--forget", "cat", "--method", "unlink-oblique"]
    assert main([*command, "--out", out]) == 0
    assert DiffusersFolder.open(out).architecture.name == model.case.name
    assert main(["verify", out, "--model", base]) == 0
    again = type(model.pipe).from_pretrained(out, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    apply_to_pipeline(model.pipe, model.erasure, runtime=False)
    torch.testing.assert_close(model.draw(pipe=again), model.draw(), atol=2e-3, rtol=2e-3)
    LiveErasure.of(model.pipe).take()
    # values alone cannot be edited where no attention has its own
    assert main([*command[:-1], "speed", "--dry-run"]) == 2
    assert "no separate values" in capsys.readouterr().err


def test_files_alone_name_the_encoder_and_another_model_is_refused(model, saved, cat):
    encoder = model.encoder
    assert fingerprint_of(DiffusersFolder.open(saved)) == encoder.fingerprint
    if encoder.norm is not None:
        other = TextEncoder(encoder.architecture, encoder.towers, norm=encoder.norm + 1)
        assert other.fingerprint != encoder.fingerprint
    with pytest.raises(WrongBase, match=f"for sd, the model is {model.case.name}"):
        apply_to_pipeline(model.pipe.transformer, cat)
