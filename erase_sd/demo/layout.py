"""The page: what is on it, and what happens on a click. All that is computed is in `studio` and `classifier`."""

from __future__ import annotations

import functools
import html
import inspect
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from erase_sd.demo import classifier
from erase_sd.demo.house import STAY, House, Visit, reports_in
from erase_sd.demo.pieces import large, pair, preflight_html, scores_html
from erase_sd.demo.recipe import code, command
from erase_sd.demo.studio import Studio
from erase_sd.erasure import Erasure
from erase_sd.methods import DEFAULT, METHODS
from erase_sd.prompts import set_names

INTRO = """# Take a concept out
Type what a text-to-image model should forget. See it go at the same seeds, see what stays, take the file home."""
NOTHING = "Nothing is erased yet."

CSS = """
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15em .7em; align-items: center }
.bars i { display: block; height: .7em; border-radius: .2em; background: var(--primary-500, #b00020) }
.bars i.kept { background: var(--neutral-400, #78909c) }
.facts { width: 100%; border-collapse: collapse } .facts td, .facts th { padding: .2em .6em; text-align: left;
border-bottom: 1px solid var(--border-color-primary, #ccc) }
button { white-space: nowrap }
#gallery .thumbnail-item { aspect-ratio: 2 / 1 } #gallery .grid-wrap { height: auto; max-height: none }
.report { width: 100%; height: 80vh; border: 0; background: white }
@media (max-width: 600px) { .facts td, .facts th { padding: .2em .25em } }
"""
DARK = "() => { document.body.classList.toggle('dark'); }"


def telling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show the visitor what was wrong in one line; anything unexpected goes to the operator's log alone."""
    expected = (ValueError, OSError, MemoryError)

    def told(error: BaseException) -> gr.Error:
        # An operating system's message has paths of this machine in it.
        text = error.strerror or "the disk failed" if isinstance(error, OSError) else str(error)
        return gr.Error(html.escape(" ".join(text.split())), title="That does not work", print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except expected as error:
                raise told(error) from error

        return steps

    @functools.wraps(function)
    def once(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except expected as error:
            raise told(error) from error

    return once


def build(house: House) -> gr.Blocks:
    """The page of a house; nothing runs before `launch`."""
    # One at a time: a model draws one visitor's pictures at once, and one visitor's events follow one another.
    heavy = {"concurrency_id": "model", "concurrency_limit": 1}
    private: dict[str, Any] = {"api_visibility": "private"}
    with gr.Blocks(title="erase-sd", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        with gr.Row():
            gr.Markdown(INTRO)
            dark = gr.Button("Dark or light", size="sm", scale=0, min_width=120)
        dark.click(None, js=DARK, **private)
        with gr.Tab("Text to image"):
            _erase_tab(house, heavy, private)
        with gr.Tab("Classifier"):
            classifier.tab(telling, heavy, private)
        with gr.Tab("Report"):
            _report_tab(house, private)
    return page


def _erase_tab(house: House, heavy: dict[str, Any], private: dict[str, Any]) -> None:
    first = house.models[0]
    visit = gr.State(Visit(first), time_to_live=STAY, delete_callback=house.leave)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            model = gr.Dropdown(
                list(house.models), value=first, label="Model", allow_custom_value=house.any_model,
                interactive=house.any_model or len(house.models) > 1,
                info="a folder or Hub id" if house.any_model else None,
            )  # fmt: skip
            forget = gr.Textbox(
                label="Forget", placeholder="cat, kitten", max_lines=4, elem_id="forget",
                info=f"One concept's names, with commas; or a set: {', '.join('set:' + n for n in set_names())}",
            )  # fmt: skip
            retain = gr.Textbox(
                label="Keep (optional)", max_lines=4, elem_id="retain",
                info="What is near and should stay; ordinary words are protected anyway",
            )  # fmt: skip
            own = gr.Textbox(label="Your own prompt to look at (optional)", placeholder="a cat on a blue background",
                             elem_id="own")  # fmt: skip
            gr.Examples([["cat, kitten", "dog"], ["set:weapons", ""], ["by noto", ""], ["pizza", ""]],
                        [forget, retain], label="Examples")  # fmt: skip
            with gr.Accordion("Method", open=False):
                method = gr.Dropdown(
                    [(f"{n}: {m.summary}", n) for n, m in METHODS.items()], value=DEFAULT, label="Method",
                    info="How the directions that go are chosen",
                )  # fmt: skip
                robust = gr.Checkbox(
                    False, label="Robust",
                    info="Also erase synonyms the text encoder knows and the embeddings that would revive the concept",
                )  # fmt: skip
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, info="Of the first picture")
            with gr.Row():
                look = gr.Button("Pre-flight", min_width=80, elem_id="preflight")
                go = gr.Button("Erase", variant="primary", min_width=80, elem_id="erase")
                stop = gr.Button("Cancel", min_width=80, elem_id="cancel")
            erased = gr.CheckboxGroup([], label="Erased now", info="Tick what to take out again", elem_id="erased")
            with gr.Row():
                out = gr.Button("Remove ticked", elem_id="remove")
                upload = gr.UploadButton("Add an erasure file", file_types=[".safetensors"], elem_id="upload")
            gr.Markdown("**Take it home**")
            with gr.Row():
                downloads = [
                    gr.DownloadButton(label, interactive=False, elem_id=f"download-{kind}")
                    for kind, label in (
                        ("erasure", "Erasure file"), ("peft", "LoRA for diffusers"), ("kohya", "LoRA for web UIs"),
                    )
                ]  # fmt: skip
            with gr.Accordion("The same in code", open=False):
                python = gr.Code(label="Python", language="python", interactive=False, elem_id="python")
                shell = gr.Code(label="Command line", language="shell", interactive=False, elem_id="shell")
        with gr.Column(scale=3, min_width=300):
            strength = gr.Slider(
                0, 2, 1, step=0.05, label="Strength", elem_id="strength",
                info="0 is the original model, 1 as the method makes it; acts at once on all that is erased",
            )  # fmt: skip
            with gr.Row():
                slider = gr.ImageSlider(
                    label="before | after, same seed", format="png", type="pil", interactive=False, elem_id="slider",
                    buttons=["fullscreen"], max_height=330, min_width=240,
                )  # fmt: skip
                scores = gr.HTML(elem_id="scores", min_width=240)
            gallery = gr.Gallery(
                label="before and after, side by side; choose one for the slider", format="png", columns=2,
                object_fit="contain", height="auto", allow_preview=False, interactive=False, buttons=[],
                elem_id="gallery",
            )  # fmt: skip
            about = gr.HTML(f"<p>{NOTHING}</p>", label="Pre-flight", elem_id="about")
    results = [visit, about, slider, gallery, scores, erased, *downloads, python, shell]
    prompts = [model, forget, retain, method, robust]

    def solve(name: str, forget_text: str, retain_text: str, how: str, hard: bool) -> tuple[Studio, Erasure, str]:
        studio = house.studio(name)
        gone = studio.limits.prompt_list(forget_text, what="forget")
        kept = studio.limits.prompt_list(retain_text, what="keep")
        label = forget_text.strip() if forget_text.strip().startswith("set:") else (gone[0] if gone else None)
        erasure, seconds = studio.erase(gone, kept, method=how, robust=hard, name=label)
        return studio, erasure, preflight_html(erasure, studio.words_hit(erasure), seconds)

    def redraw(studio: Studio, state: Visit, progress: gr.Progress) -> Iterator[dict[Any, Any]]:
        """Draw what a visitor's erasures make of the prompts; give up the thread between batches."""
        if not state.stack:
            yield {
                slider: None,
                gallery: None,
                scores: "",
            } | home(studio, replace(state, shots=(), before=(), after=(), brought=False))
            return
        shots = studio.shots(state.stack, state.own, state.seed)
        drawn: list[list[Image.Image]] = []
        start, total = time.perf_counter(), 2 * len(shots)
        for stack in ((), state.stack):
            pictures: list[Image.Image] = []
            progress((len(shots) * len(drawn), total), desc="drawing", unit="pictures")
            for pictures in studio.draw(shots, stack, state.scale):
                done = len(shots) * len(drawn) + len(pictures)
                left = (time.perf_counter() - start) / done * (total - done)
                progress((done, total), desc=f"drawing, about {left:.0f} s left", unit="pictures")
                yield {about: gr.skip()}
            drawn.append(pictures)
        before, after = drawn
        state = replace(state, shots=tuple(shots), before=tuple(before), after=tuple(after))
        verdicts = scores_html(studio, state)
        yield home(studio, state) | {
            slider: (large(before[0]), large(after[0])),
            gallery: [
                (pair(b, a), f"{'forget' if s.forget else 'keep'}: {s.prompt}")
                for s, b, a in zip(shots, before, after, strict=True)
            ],
            scores: verdicts,
        }

    def home(studio: Studio, state: Visit) -> dict[Any, Any]:
        """Files, code and the list of what is erased."""
        house.sweep()
        files: dict[str, Path] = {}
        new: Path | None = None
        if state.stack:
            new = Path(tempfile.mkdtemp(dir=house.folder))
            try:
                files = studio.files(state.stack, state.scale, new)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
        house.leave(state)  # the files of the step before
        state = replace(state, folder=new)
        kinds, done = ("erasure", "peft", "kohya"), (studio.name, state.stack, state.scale)
        return {
            visit: state,
            erased: gr.CheckboxGroup(state.names, value=[]),
            python: code(*done, brought=state.brought) if state.stack else "",
            shell: command(*done, brought=state.brought) if state.stack else "",
        } | {
            button: gr.DownloadButton(value=files.get(kind) and str(files[kind]), interactive=kind in files)
            for button, kind in zip(downloads, kinds, strict=True)
        }

    @telling
    def preflight(*typed: Any) -> str:
        return solve(*typed)[2]

    @telling
    def erase(
        state: Visit, scale: float, own_prompt: str, first_seed: float | None, name: str, *typed: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        progress(0, desc="solving")
        studio, erasure, told = solve(name, *typed)
        own_list = studio.limits.prompt_list(own_prompt.replace(",", " "), what="look at")
        stack = studio.stacked(state.stack if state.model == name else (), erasure)
        state = replace(state, model=name, stack=stack, scale=float(scale), own=own_list[0] if own_list else "",
                        seed=int(first_seed or 0))  # fmt: skip
        yield {about: told}
        yield from redraw(studio, state, progress)

    @telling
    def rescale(state: Visit, scale: float, progress: gr.Progress = gr.Progress()) -> Iterator[dict[Any, Any]]:  # noqa: B008
        yield from redraw(house.studio(state.model), replace(state, scale=float(scale)), progress)

    @telling
    def remove(state: Visit, names: list[str], progress: gr.Progress = gr.Progress()) -> Iterator[dict[Any, Any]]:  # noqa: B008
        if not names:
            raise ValueError("tick what to take out first")
        stack = []
        for erasure in state.stack:
            for name in set(names) & set(erasure.names):
                erasure = erasure - name  # noqa: PLW2901
            if erasure.parts:
                stack.append(erasure)
        yield {about: gr.skip() if stack else f"<p>{NOTHING}</p>"}
        yield from redraw(house.studio(state.model), replace(state, stack=tuple(stack)), progress)

    @telling
    def add(state: Visit, path: str, scale: float, name: str, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        studio = house.studio(name)
        try:
            erasure = studio.open(path)
        finally:
            Path(path).unlink(missing_ok=True)
        stack = studio.stacked(state.stack if state.model == name else (), erasure)
        yield {about: f"<p>added {html.escape(', '.join(erasure.names))}</p>"}
        state = replace(state, model=name, stack=stack, scale=float(scale), brought=True)
        yield from redraw(studio, state, progress)

    def choose(state: Visit, event: gr.SelectData) -> tuple[Image.Image, Image.Image]:
        return large(state.before[event.index]), large(state.after[event.index])

    running = [
        gr.on(
            [go.click, forget.submit, own.submit],
            erase,
            [visit, strength, own, seed, *prompts],
            results,
            **heavy,
            **private,
        ),  # fmt: skip
        strength.input(rescale, [visit, strength], results, trigger_mode="always_last", **heavy, **private),
        out.click(remove, [visit, erased], results, **heavy, **private),
        upload.upload(add, [visit, upload, strength, model], results, **heavy, **private),
    ]
    look.click(preflight, prompts, about, **heavy, **private)
    gallery.select(choose, visit, slider, **private)
    stop.click(None, cancels=running, **private)


def _report_tab(house: House, private: dict[str, Any]) -> None:
    names = list(reports_in(house.reports))
    if not names:
        where = f"There is none below {house.reports.name}." if house.reports else "No folder was given."
        gr.Markdown(
            f"Pages written by `erase-concept eval report` can be read here. {where} Start the demo with "
            "`erase-concept demo --reports FOLDER`; docs/evaluation.md tells how to make "
            "one."
        )
        return
    chosen = gr.Dropdown(names, value=None, label="Report", elem_id="report")
    shown = gr.HTML(elem_id="report-page")

    @telling
    def show(name: str | None) -> str:
        if not name:
            return ""
        path = reports_in(house.reports).get(name)
        if path is None:
            raise ValueError("that report is gone; reload the page")
        text = html.escape(path.read_text(encoding="utf-8"), quote=True)
        # No script of a report runs, and it cannot reach the page around it.
        title = html.escape(name)
        return f'<iframe title="report {title}" sandbox="" class="report" srcdoc="{text}"></iframe>'

    chosen.change(show, chosen, shown, **private)
