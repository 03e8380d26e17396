"""SD 3, FLUX and PixArt at reduced width and random weights, against diffusers' own pipelines."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.schedulers import DPMSolverMultistepScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from erase_sd.cli.main import main
from erase_sd.fit.solve import Settings, fit
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.pipelines import LiveErasure, apply_to_pipeline
from erase_sd.text.encoder import TextEncoder
from lab.shapes import TOKENIZER


def t5_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = "a of the photo picture drawing cat dog house tree flower car boat bird stone".split()
    words += "river cloud bread".split()
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"▁{w}": i + 3 for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def clip(width, *, projected):
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(width):
    config = T5Config(vocab_size=120, d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    return t5_tokenizer(), T5EncoderModel(config).eval()


def vae():
    return AutoencoderKL(
        block_out_channels=(32,),
        latent_channels=4,
        norm_num_groups=32,
        sample_size=16,
        shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )


def sd3():
    (ta, a), (tb, b), (tc, c) = clip(64, projected=True), clip(96, projected=True), t5(192)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=192,
        pooled_projection_dim=160,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=a,
        tokenizer=ta,
        text_encoder_2=b,
        tokenizer_2=tb,
        text_encoder_3=c,
        tokenizer_3=tc,
    )


def flux():
    (ta, a), (tb, b) = clip(64, projected=False), t5(96)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=a,
        tokenizer=ta,
        text_encoder_2=b,
        tokenizer_2=tb,
    )


def pixart():
    tokenizer, encoder = t5(96)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=96,
        norm_num_groups=16,
    )
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


MODELS = {"sd3": sd3, "flux": flux, "pixart": pixart}
SIZE = {"sd3": 8, "flux": 16, "pixart": 8}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    pipe = MODELS[request.param]()
    with (
        torch.no_grad()
    ):  # random but not zero: adaLN outputs start at zero and would hide the text
        for p in pipe.transformer.parameters():
            p.copy_(torch.randn(p.shape) * (0.3 if p.ndim > 1 else 0.1))
    pipe.set_progress_bar_config(disable=True)
    encoder = TextEncoder.of(pipe)
    erasure = fit(
        encoder,
        ["cat"],
        weights=LiveErasure.of(pipe).originals(),
        settings=Settings("unlink-oblique"),
    )
    return request.param, pipe, encoder, erasure


def draw(kind, pipe):
    options = {} if kind == "flux" else {"guidance_scale": 2.0}
    if kind == "pixart":
        options["use_resolution_binning"] = False
    size = SIZE[kind]
    return pipe(
        "a photo of a cat",
        height=size,
        width=size,
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **options,
    ).images


def test_text_streams_are_those_of_the_pipeline(model):
    kind, pipe, encoder, _ = model
    prompt = "a photo of a cat"
    ours = encoder.encode([prompt])
    if kind == "pixart":
        tokens, _, _, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    elif kind == "flux":
        tokens, pooled, _ = pipe.encode_prompt(prompt, prompt_2=None)
    else:
        tokens, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(ours.states, tokens, atol=1e-5, rtol=1e-4)
    if kind == "pixart":
        assert encoder.widths.keys() == {"tokens"}
    else:
        torch.testing.assert_close(ours.pooled, pooled, atol=1e-5, rtol=1e-4)


def test_live_edit_equals_runtime_edit_and_goes_away(model):
    kind, pipe, _, erasure = model
    original = draw(kind, pipe)
    apply_to_pipeline(pipe, erasure, runtime=False)
    baked = draw(kind, pipe)
    assert (baked - original).abs().max() > 1e-4
    LiveErasure.of(pipe).take()
    assert torch.equal(draw(kind, pipe), original)
    apply_to_pipeline(pipe, erasure, runtime=True)
    torch.testing.assert_close(draw(kind, pipe), baked, atol=2e-3, rtol=2e-3)
    LiveErasure.of(pipe).take()
    assert torch.equal(draw(kind, pipe), original)


def test_a_folder_of_it_is_erased_and_verifies(model, tmp_path, capsys):
    kind, pipe, _, _ = model
    pipe.save_pretrained(tmp_path / "base")
    command = [
        "erase",
        "--model",
        str(tmp_path / "base"),
        "--forget",
        "cat",
        "--method",
        "unlink-oblique",
    ]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    folder = DiffusersFolder.open(tmp_path / "out")
    assert folder.architecture.name == kind
    assert main(["verify", str(tmp_path / "out"), "--model", str(tmp_path / "base")]) == 0
    again = type(pipe).from_pretrained(tmp_path / "out", local_files_only=True)
    assert set(folder.where) <= set(dict(again.transformer.named_parameters()))
    # values alone cannot be edited where no attention has its own
    assert (
        main(
            [
                "erase",
                "--model",
                str(tmp_path / "base"),
                "--forget",
                "cat",
                "--method",
                "speed",
                "--dry-run",
            ]
        )
        == 2
    )
    assert "no separate values" in capsys.readouterr().err
