"""The page: what is on it, and which handler runs on a click. Nothing is computed here."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gradio as gr

from erase_sd.demo import handlers, inputs
from erase_sd.demo.classifier import NETWORKS, QUICK, class_names
from erase_sd.demo.components import Asked, Looked, Results, asked_for, looked_at, results
from erase_sd.demo.handlers import ClassUpdate, Update
from erase_sd.demo.inputs import Concept, View
from erase_sd.demo.server import Server
from erase_sd.demo.visitor import Session
from erase_sd.demo.wiring import heavy, quick, visitor_of
from erase_sd.vision import DEFAULT

INTRO = """# Take a concept out
Type what a text-to-image model should forget. See it go at the same seeds, see what stays, take
the file home."""
CSS = """
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15em .7em;
align-items: center }
.bars i { display: block; height: .7em; border-radius: .2em;
background: var(--primary-500, #b00020) }
.bars i.kept { background: var(--neutral-400, #78909c) }
.facts { width: 100%; border-collapse: collapse } .facts td, .facts th { padding: .2em .6em;
text-align: left; border-bottom: 1px solid var(--border-color-primary, #ccc) }
button { white-space: nowrap }
#gallery .thumbnail-item { aspect-ratio: 2 / 1 } #gallery .grid-wrap { height: auto;
max-height: none }
.report { width: 100%; height: 80vh; border: 0; background: white }
@media (max-width: 600px) { .facts td, .facts th { padding: .2em .25em } }
"""
THEME = gr.themes.Default(
    primary_hue="rose",
    neutral_hue="slate",
    font=("ui-sans-serif", "system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)
DARK = "() => { document.body.classList.toggle('dark'); }"
# Values arrive as the browser sent them; `inputs` checks them. No outside API.
_RAW: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "concurrency_limit": None}


def build(server: Server) -> gr.Blocks:
    """The page of a server; nothing runs before it is served."""
    page: gr.Blocks
    with gr.Blocks(title="erase-sd", analytics_enabled=False) as page:
        with gr.Row():
            gr.Markdown(INTRO)
            dark = gr.Button("Dark or light", size="sm", scale=0, min_width=120)
        dark.click(None, js=DARK, api_visibility="private")
        with gr.Tab("Text to image"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                asked, result = asked_for(server), results(server.limits.concepts)
            with gr.Column(scale=3, min_width=300):
                looked = looked_at()
            _wire(server, asked, result, looked)
        with gr.Tab("Classifier"):
            _class_tab(server)
        with gr.Tab("Report"):
            _report_tab(server)
    return page


def _wire(server: Server, asked: Asked, result: Results, looked: Looked) -> None:
    """Connect the first tab's buttons to their handlers."""
    outputs = _outputs(result, looked)

    def show(update: Update | None) -> dict[Any, Any]:
        told = update.about if update else None
        changed = {looked.about: gr.skip() if told is None else told}
        session = update.session if update else None
        return changed | (_shown(session, result, looked) if session else {})

    def typed(scale: Any, own: Any, seed: Any, *concept: Any) -> tuple[Concept, View]:
        return Concept.of(*concept), View.of(scale, own, seed)

    def rescaled(scale: Any) -> tuple[float]:
        return (inputs.number(scale, "the scale", most=2),)

    def brought(path: Any, scale: Any, model: Any) -> tuple[Path, float, str]:
        return inputs.uploaded(path), *rescaled(scale), inputs.text(model, "the model")

    concept = [asked.model, asked.forget, asked.retain, asked.method, asked.robust]
    concept += [asked.toward]
    running = [
        gr.on(
            [asked.go.click, asked.forget.submit, asked.own.submit],
            heavy(server, handlers.erase, typed, show),
            [looked.scale, asked.own, asked.seed, *concept],
            outputs,
            **_RAW,
        ),
        looked.scale.input(
            heavy(server, handlers.rescale, rescaled, show),
            looked.scale,
            outputs,
            trigger_mode="always_last",
            **_RAW,
        ),
        result.out.click(
            heavy(server, handlers.remove, lambda ticked: (inputs.names(ticked),), show),
            result.erased,
            outputs,
            **_RAW,
        ),
        result.upload.upload(
            heavy(server, handlers.add, brought, show),
            [result.upload, looked.scale, asked.model],
            outputs,
            **_RAW,
        ),
    ]
    running += [_wire_far(server, slider, i, show, outputs) for i, slider in enumerate(result.far)]
    look = heavy(server, handlers.preflight, lambda *raw: (Concept.of(*raw),), show)
    asked.look.click(look, concept, looked.about, **_RAW)
    asked.stop.click(None, cancels=running, api_visibility="private")
    _wire_gallery(server, looked)


def _wire_far(server: Server, slider: gr.Slider, index: int, show: Any, outputs: list[Any]) -> Any:
    """Let a concept's own slider say how far it goes."""

    def typed(strength: Any) -> tuple[int, float]:
        return index, inputs.number(strength, "how far a concept goes", most=2)

    run = heavy(server, handlers.strengthen, typed, show)
    return slider.input(run, slider, outputs, trigger_mode="always_last", **_RAW)


def _wire_gallery(server: Server, looked: Looked) -> None:
    """Let a click on a picture show it in the slider."""

    @quick
    def choose(request: gr.Request, event: gr.EventData) -> Any:
        session = visitor_of(request).session(str(request.session_hash), server.models[0])
        # Gradio has no public name for what a browser says of an event.
        told = event._data if isinstance(event._data, dict) else {}
        index = int(inputs.number(told.get("index"), "a picture", most=10_000))
        return _both(handlers.choose(session, index)) or gr.skip()

    looked.gallery.select(choose, None, looked.slider, **_RAW)


def _outputs(result: Results, looked: Looked) -> list[Any]:
    """All that a session changes."""
    return [
        looked.about,
        looked.slider,
        looked.gallery,
        looked.scores,
        result.erased,
        *result.far,
        *result.downloads.values(),
        result.python,
        result.shell,
    ]


def _shown(session: Session, results: Results, looked: Looked) -> dict[Any, Any]:
    """All that the page shows of a session."""
    pictures = session.pictures
    pairs = pictures.pairs if pictures else ()
    return (
        {
            results.erased: gr.CheckboxGroup(session.names, value=[]),
            results.python: session.python,
            results.shell: session.shell,
            looked.scores: session.scores,
            looked.slider: _both(handlers.choose(session, 0)),
            looked.gallery: [
                (str(path), f"{'forget' if s.forget else 'keep'}: {s.prompt}")
                for s, path in zip(session.shots, pairs, strict=True)
            ]
            or None,
        }
        | _far(session, results)
        | {
            button: gr.DownloadButton(
                value=str(session.files[kind]) if kind in session.files else None,
                interactive=kind in session.files,
            )
            for kind, button in results.downloads.items()
        }
    )


def _far(session: Session, results: Results) -> dict[Any, Any]:
    """A slider for each concept; one alone has the scale."""
    parts = [c for e in session.stack for c in e.concepts]
    shown = len(parts) > 1
    return {
        slider: gr.Slider(value=part.strength, label=f"How far: {part.name}", visible=True)
        if shown and part is not None
        else gr.Slider(visible=False)
        for slider, part in itertools.zip_longest(results.far, parts)
    }


def _both(paths: tuple[Path, Path] | None) -> tuple[str, str] | None:
    return paths and (str(paths[0]), str(paths[1]))


def _class_tab(server: Server) -> None:
    """The tab on which a class goes from a classifier."""
    first = next(iter(NETWORKS))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            network = gr.Radio(
                [(told, n) for n, told in NETWORKS.items()],
                value=first,
                label="Network",
                elem_id="network",
            )
            label = gr.Dropdown(
                class_names(first), value="3", label="Class to forget", elem_id="class"
            )
            method = gr.Dropdown(
                [(f"{n}: {told}", n) for n, told in QUICK.items()],
                value=DEFAULT,
                label="Method",
                info="How its directions are chosen and taken out of the last layer",
            )
            go = gr.Button("Forget", variant="primary", elem_id="forget-class")
            shell = gr.Code(
                label="The same on the command line", language="shell", interactive=False
            )
        with gr.Column(scale=3, min_width=300):
            about = gr.HTML("<p>Nothing is forgotten yet.</p>", elem_id="outcome")
            gallery = gr.Gallery(
                label="test samples and what they are taken for; the forgotten class first",
                format="png",
                columns=4,
                height="auto",
                allow_preview=False,
                interactive=False,
                buttons=[],
            )

    def show(update: ClassUpdate | None) -> dict[Any, Any]:
        if update is None:
            return {about: gr.skip()}
        pictures = [(str(path), told) for path, told in update.pictures]
        return {about: update.about, gallery: pictures, shell: update.shell}

    def typed(*raw: Any) -> tuple[str, ...]:
        what = ("the network", "the class", "the method")
        return tuple(inputs.text(r, w) for r, w in zip(raw, what, strict=True))

    @quick
    def choices(chosen: Any) -> Any:
        found = class_names(inputs.text(chosen, "the network"))
        return gr.Dropdown(found, value=found[3])

    network.change(choices, network, label, **_RAW)
    run = heavy(server, handlers.unlearn_class, typed, show)
    go.click(run, [network, label, method], [about, gallery, shell], **_RAW)


def _report_tab(server: Server) -> None:
    """The tab on which evaluation pages are read."""
    names = list(server.pages())
    if not names:
        where = (
            f"There is none below {server.reports.name}."
            if server.reports
            else "No folder was given."
        )
        gr.Markdown(
            f"Pages written by `erase-concept eval report` can be read here. {where} Start the "
            "demo with `erase-concept demo --reports FOLDER`; docs/evaluation.md tells how to "
            "make one."
        )
        return
    chosen = gr.Dropdown(names, value=None, label="Report", elem_id="report")
    shown = gr.HTML(elem_id="report-page")

    @quick
    def show(name: Any) -> str:
        return handlers.show_report(server, inputs.text(name, "the report"))

    chosen.change(show, chosen, shown, **_RAW)
