"""What lies on the first tab, in three groups."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from erase_sd.algebra.methods import DEFAULT, METHODS
from erase_sd.demo.handlers import NOTHING
from erase_sd.demo.server import Server
from erase_sd.prompts import set_names

EXAMPLES = (("cat, kitten", "dog"), ("set:weapons", ""), ("by noto", ""), ("pizza", ""))
HOME = {
    "erasure": "Erasure file",
    "peft": "LoRA for diffusers",
    "hosts": "LoRA for ComfyUI and web UIs",
}


@dataclass(frozen=True)
class Asked:
    """Components for what should go."""

    model: gr.Dropdown
    forget: gr.Textbox
    retain: gr.Textbox
    own: gr.Textbox
    method: gr.Dropdown
    robust: gr.Checkbox
    toward: gr.Textbox
    seed: gr.Number
    look: gr.Button
    go: gr.Button
    stop: gr.Button


@dataclass(frozen=True)
class Results:
    """Components for what is erased, and for taking it home."""

    erased: gr.CheckboxGroup
    far: tuple[gr.Slider, ...]
    out: gr.Button
    upload: gr.UploadButton
    downloads: dict[str, gr.DownloadButton]
    python: gr.Code
    shell: gr.Code


@dataclass(frozen=True)
class Looked:
    """Components that show before and after."""

    scale: gr.Slider
    slider: gr.ImageSlider
    scores: gr.HTML
    gallery: gr.Gallery
    about: gr.HTML


def asked_for(server: Server) -> Asked:
    """The boxes to type in, and the buttons below them."""
    sets = ", ".join("set:" + n for n in set_names())
    model = gr.Dropdown(
        list(server.models),
        value=server.models[0],
        label="Model",
        allow_custom_value=server.any_model,
        interactive=server.any_model or len(server.models) > 1,
        info="a folder or Hub id" if server.any_model else None,
    )
    forget = gr.Textbox(
        label="Forget",
        placeholder="cat, kitten",
        max_lines=4,
        elem_id="forget",
        info=f"One concept's names, with commas; or a set: {sets}",
    )
    retain = gr.Textbox(
        label="Keep (optional)",
        max_lines=4,
        elem_id="retain",
        info="What is near and should stay; ordinary words are protected anyway",
    )
    own = gr.Textbox(
        label="Your own prompt to look at (optional)",
        placeholder="a cat on a blue background",
        elem_id="own",
    )
    with gr.Row():
        for gone, kept in EXAMPLES:
            example = gr.Button(f"{gone} / keep {kept}" if kept else gone, size="sm", min_width=60)
            example.click(None, js=f"() => {[gone, kept]}", outputs=[forget, retain])
    method, robust, toward, seed = _method()
    with gr.Row():
        look = gr.Button("Pre-flight", min_width=80, elem_id="preflight")
        go = gr.Button("Erase", variant="primary", min_width=80, elem_id="erase")
        stop = gr.Button("Cancel", min_width=80, elem_id="cancel")
    return Asked(model, forget, retain, own, method, robust, toward, seed, look, go, stop)


def _method() -> tuple[gr.Dropdown, gr.Checkbox, gr.Textbox, gr.Number]:
    with gr.Accordion("Method", open=False):
        method = gr.Dropdown(
            [(f"{n}: {m.summary}", n) for n, m in METHODS.items()],
            value=DEFAULT,
            label="Method",
            info="How the directions that go are chosen",
        )
        robust = gr.Checkbox(
            False,
            label="Robust",
            info="Also erase synonyms the text encoder knows, and let no input write what sets the "
            "concept apart; it costs more of what should stay",
        )
        targets = ", ".join(n for n, m in METHODS.items() if m.anchor is not None)
        toward = gr.Textbox(
            label="Instead (optional)",
            placeholder="dog",
            max_lines=1,
            elem_id="toward",
            info=f"What should appear in its place, with a method that has a target: {targets}",
        )
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=2**31, info="Of the first picture"
        )
    return method, robust, toward, seed


def results(most: int) -> Results:
    """What is erased, and what can be taken home.

    Args:
        most: How many concepts there can be at once.
    """
    erased = gr.CheckboxGroup(
        [], label="Erased now", info="Tick what to take out again", elem_id="erased"
    )
    far = tuple(
        gr.Slider(0, 2, 1, step=0.05, visible=False, elem_id=f"far-{i}") for i in range(most)
    )
    with gr.Row():
        out = gr.Button("Remove ticked", elem_id="remove")
        upload = gr.UploadButton(
            "Add an erasure file", file_types=[".safetensors"], elem_id="upload"
        )
    gr.Markdown("**Take it home**")
    with gr.Row():
        downloads = {
            kind: gr.DownloadButton(label, interactive=False, elem_id=f"download-{kind}")
            for kind, label in HOME.items()
        }
    with gr.Accordion("The same in code", open=False):
        python = gr.Code(label="Python", language="python", interactive=False, elem_id="python")
        shell = gr.Code(label="Command line", language="shell", interactive=False, elem_id="shell")
    return Results(erased, far, out, upload, downloads, python, shell)


def looked_at() -> Looked:
    """Pictures, scores and the pre-flight."""
    scale = gr.Slider(
        0,
        2,
        1,
        step=0.05,
        label="Scale",
        elem_id="scale",
        info="0 is the original model, 1 as the method makes it; acts on all that is erased",
    )
    with gr.Row():
        slider = gr.ImageSlider(
            label="before | after, same seed",
            format="png",
            type="filepath",
            interactive=False,
            elem_id="slider",
            buttons=["fullscreen"],
            max_height=330,
            min_width=240,
        )
        scores = gr.HTML(elem_id="scores", min_width=240)
    gallery = gr.Gallery(
        label="before and after, side by side; choose one for the slider",
        format="png",
        columns=2,
        object_fit="contain",
        height="auto",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="gallery",
    )
    about = gr.HTML(NOTHING, label="Pre-flight", elem_id="about")
    return Looked(scale, slider, scores, gallery, about)
