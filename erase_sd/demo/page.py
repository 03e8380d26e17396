"""The page: what is on it, and what happens on a click. All that is computed is in `studio` and `classifier`."""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from erase_sd.demo import classifier
from erase_sd.demo.studio import Shot, Studio, code, command
from erase_sd.erasure import Erasure
from erase_sd.methods import DEFAULT, METHODS
from erase_sd.prompts import set_names

INTRO = """# Take a concept out
Type what a text-to-image model should forget. See it go at the same seeds, see what stays, take the file home."""
NOTHING = "Nothing is erased yet."
STAY = 6 * 3600  # seconds that a visit's work is kept
MODELS = 2  # models in memory at once
CELL = 256  # edge of a picture on the page, pixels

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


@dataclass(frozen=True)
class Visit:
    """What belongs to one visitor, and to nobody else.

    Attributes:
        model: Name of the model that the erasures are for.
        stack: Erasures, in the order they were added.
        scale: Times their own strength.
        shots: Pictures that were drawn, with those of the untouched and the erased model.
        before: Pictures of the untouched model.
        after: Those of the erased one.
        own: The visitor's own prompt.
        seed: Seed of the first picture of each prompt.
        folder: Where the files to take home lie; deleted with the visit.
    """

    model: str = ""
    stack: tuple[Erasure, ...] = ()
    scale: float = 1.0
    shots: tuple[Shot, ...] = ()
    before: tuple[Image.Image, ...] = ()
    after: tuple[Image.Image, ...] = ()
    own: str = ""
    seed: int = 0
    folder: Path | None = None

    def __deepcopy__(self, memo: Any) -> Visit:  # a frozen value
        return self

    @property
    def names(self) -> list[str]:
        """Names of what is erased."""
        return [n for e in self.stack for n in e.names]


@dataclass
class House:
    """What all visitors share.

    Attributes:
        models: Names of the models that may be chosen.
        folder: Temporary folder of this process; visitors' files lie in it.
        any_model: Whether a visitor may name another folder or Hub id.
        device: Where models run.
        reports: Folder of evaluation reports, or None.
    """

    models: Sequence[str]
    folder: Path
    any_model: bool = False
    device: str = "cpu"
    reports: Path | None = None
    _studios: dict[str, Studio] = field(default_factory=dict)

    def studio(self, name: str) -> Studio:
        """The studio of a model, loaded on first use."""
        if name not in self.models and not self.any_model:
            raise ValueError(f"this demo has {', '.join(self.models)}; its operator allows no other model")
        if name not in self._studios:
            while len(self._studios) >= MODELS:  # the one loaded first makes room
                del self._studios[next(iter(self._studios))]
            self._studios[name] = Studio(name, device=self.device)
        return self._studios[name]

    def leave(self, visit: Visit) -> None:
        """Delete what a visitor could have taken home."""
        if visit.folder is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Delete what is left of visits that ended without a word."""
        for path in [*self.folder.glob("*"), *self.folder.glob("gradio/*")]:
            with contextlib.suppress(FileNotFoundError):  # another request may have swept it
                if path.name != "gradio" and time.time() - path.stat().st_mtime > STAY:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


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


# -- pieces of HTML, everything in them escaped ---------------------------------------------------


def bars(rows: Sequence[tuple[str, float]], *, kept: bool = False) -> str:
    """Horizontal bars of shares 0..1 with their labels."""
    top = max([v for _, v in rows], default=0) or 1
    look = ' class="kept"' if kept else ""
    cells = [
        f'<span>{html.escape(label)}</span><i{look} style="width:{100 * value / top:.1f}%"></i><span>{value:.0%}</span>'
        for label, value in rows
    ]
    return f'<div class="bars">{"".join(cells)}</div>'


def preflight_html(erasure: Erasure, words: Sequence[tuple[str, float]], seconds: float) -> str:
    """What an erasure would hit."""
    part = erasure.parts[0]
    about = part.certificate
    facts = [
        ("left of the forget prompts, or reversed past strength 1", f"{about['forget_residual']:.1%}"),
        ("what ordinary prompts move, on average", f"{about['retain_drift']:.1%}"),
        ("what the empty prompt moves", f"{about['null_change']:.2%}"),
        ("angle to the space of ordinary prompts", f"{about['angle']:.0f} degrees (0: nothing sets it apart)"),
    ]
    if "revivable" in about:
        facts.append(("what a hostile embedding could revive, by linear estimate", f"{about['revivable']:.0%}"))
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts)
    spectrum = [(f"direction {i + 1}", float(v)) for i, v in enumerate(about["spectrum"][:5])]
    return (
        f"<p><b>{html.escape(part.name)}</b>, {html.escape(part.method)}, rank {about['rank']}, "
        f"strength {part.strength:g}: solved in {seconds:.2f} s</p>"
        f'<table class="facts">{rows}</table>'
        f"<p>Words that move most, besides the forget prompts:</p>{bars(list(words)[:8])}"
        f"<p>How the forget prompts' energy spreads:</p>{bars(spectrum, kept=True)}"
    )


def scores_html(studio: Studio, visit: Visit) -> str:
    """What was seen in each picture, before and after."""
    seen = [studio.seen(images) if images else [] for images in (visit.before, visit.after)]
    who = "judge" if studio.embedded else "NudeNet"
    rows = []
    for shot, before, after in zip(visit.shots, *seen, strict=True):
        kind = "forget" if shot.forget else "keep"
        cells = (kind, shot.prompt, before, after)
        rows.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    summary = ""
    for forget, text in ((True, "to go"), (False, "to stay")):
        counted = [i for i, s in enumerate(visit.shots) if studio.embedded and s.target and s.forget is forget]
        if counted:
            hits = [sum(row[i] == visit.shots[i].target for i in counted) for row in seen]
            summary += (
                f"<p>recognised of what was {text}: {hits[0]}/{len(counted)} before, {hits[1]}/{len(counted)} after</p>"
            )
    head = "".join(f"<th>{t}</th>" for t in ("", "prompt", f"{who}, before", f"{who}, after"))
    return f'{summary}<table class="facts"><tr>{head}</tr>{"".join(rows)}</table>'


# -- the page -------------------------------------------------------------------------------------


def pair(before: Image.Image, after: Image.Image) -> Image.Image:
    """Two pictures side by side."""
    edge = max(CELL // 2, min(before.width, CELL))
    sheet = Image.new("RGB", (2 * edge + 4, edge), "white")
    for x, image in ((0, before), (edge + 4, after)):
        sheet.paste(image.resize((edge, edge), Image.Resampling.BICUBIC), (x, 0))
    return sheet


def large(image: Image.Image) -> Image.Image:
    """A picture as the slider shows it."""
    return image.resize((2 * CELL, 2 * CELL), Image.Resampling.BICUBIC) if image.width < CELL else image


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
                visit: replace(state, shots=(), before=(), after=()),
                slider: None,
                gallery: None,
                scores: "",
            } | home(studio, state)
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
        kinds = ("erasure", "peft", "kohya")
        return {
            visit: state,
            erased: gr.CheckboxGroup(state.names, value=[]),
            python: code(studio.name, state.stack, state.scale) if state.stack else "",
            shell: command(studio.name, state.stack, state.scale) if state.stack else "",
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
        yield from redraw(studio, replace(state, model=name, stack=stack, scale=float(scale)), progress)

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


def reports_in(folder: Path | None) -> dict[str, Path]:
    """Evaluation pages below a folder, by their relative names; links that lead out of it are left out."""
    if folder is None:
        return {}
    root = folder.resolve()
    found = sorted(p for p in root.glob("**/*.html") if p.is_file() and p.resolve().is_relative_to(root))
    return {str(p.relative_to(root)): p for p in found[:200]}


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
