"""The demo's second tab: a class goes from a classifier, and the other classes stay."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch
from PIL import Image

from erase_sd.demo.pieces import outcome_html

if TYPE_CHECKING:
    from torch import nn

    from erase_sd.vision import Data

NETWORKS = {
    "mlp": "handwritten digits, a two-layer network trained here in seconds",
    "cnn": "handwritten digits, a small convolutional network trained here in seconds",
    "emoji-clip": "objects of the embedded world, zero-shot CLIP, on few scenes of each",
}
_LOCK = threading.Lock()


@cache
def network(name: str) -> tuple[nn.Module, Data]:
    """The original network and its data, made once."""
    from erase_sd.vision import load_data, load_model
    from erase_sd.vision.data import emoji
    from erase_sd.vision.models import trained

    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    if name == "emoji-clip":
        data = emoji(16, 5)  # of each object: an answer in seconds
        return load_model(name, len(data.classes)), data
    data = load_data("digits")
    return trained(name, data, epochs=20), data


@cache
def _untouched(name: str, label: str) -> dict[str, float]:
    """Numbers of the original network."""
    from erase_sd.vision import make_task, measure

    model, data = network(name)
    return measure(model, make_task(data, f"class:{label}"))


@dataclass(frozen=True)
class Outcome:
    """What forgetting a class did.

    Attributes:
        numbers: UA, RA, TA and MIA before and after, per cent.
        classes: Name, accuracy before and after on test samples, 0..1.
        pictures: Test samples with what they are taken for, before and, where that changed, after.
        seconds: Run time of the method.
        command: The same on the command line.
    """

    numbers: dict[str, dict[str, float]]
    classes: list[tuple[str, float, float]]
    pictures: list[tuple[Image.Image, str]]
    seconds: float
    command: str


def forget(name: str, label: str, method: str) -> Outcome:
    """Make a network forget a class; the original stays as it is for everybody else."""
    from erase_sd.vision import make_task, measure, unlearn
    from erase_sd.vision.train import logits

    with _LOCK:
        model, data = network(name)
        task = make_task(data, f"class:{label}")
        result = unlearn(model, task, method, preset=f"{data.name} {name}")
        number = task.classes[0]
        near = [c for c in range(len(data.classes)) if c != number]
        wrong = {m: logits(net, data.test_x).argmax(1) for m, net in (("before", model), ("after", result.model))}

        def hits(c: int, when: str) -> float:
            return float((wrong[when][data.test_y == c] == c).float().mean())

        rows = [(data.classes[c], hits(c, "before"), hits(c, "after")) for c in [number, *near]]
        index = torch.cat([torch.nonzero(data.test_y == number)[:6, 0],
                           torch.nonzero(torch.isin(data.test_y, torch.tensor(near)))[::7, 0][:6]])  # fmt: skip
        pictures = []
        for i in index.tolist():
            x = data.test_x[i]
            grey = (255 * (x - x.min()) / (x.max() - x.min()).clamp(min=1e-6)).byte().permute(1, 2, 0).numpy()
            image = Image.fromarray(grey[..., 0] if grey.shape[2] == 1 else grey).resize(
                (128, 128), Image.Resampling.NEAREST
            )
            seen = [data.classes[int(wrong[when][i])] for when in ("before", "after")]
            told = seen[0] if seen[0] == seen[1] else f"{seen[0]}, now {seen[1]}"
            pictures.append((image, told))
        words = ["erase-concept", "vision", "unlearn", "--model", name]
        words += [] if name == "emoji-clip" else ["--train", "--epochs", "20"]
        words += ["--data", data.name, "--forget", f"class:{label}", "--method", method]
        numbers = {"before": _untouched(name, label), "after": measure(result.model, task)}
    return Outcome(numbers, rows, pictures, result.seconds, shlex.join(words))


def tab(telling: Callable[..., Any], heavy: dict[str, Any], private: dict[str, Any]) -> None:
    """The tab's components and what they do."""
    from erase_sd.emoji.world import load_world
    from erase_sd.vision import DEFAULT, METHODS

    classes = {n: [str(d) for d in range(10)] for n in ("mlp", "cnn")} | {"emoji-clip": list(load_world().names)}
    # Those that need no training: an answer in a second.
    quick = {
        n: m for n, m in METHODS.items() if m.kind in ("closed-form", "trivial") and n not in ("gf", "unlink-below")
    }
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            name = gr.Radio(
                [(text, n) for n, text in NETWORKS.items()], value="mlp", label="Network", elem_id="network"
            )
            label = gr.Dropdown(classes["mlp"], value="3", label="Class to forget", elem_id="class")
            method = gr.Dropdown(
                [(f"{n}: {m.summary}", n) for n, m in quick.items()], value=DEFAULT, label="Method",
                info="How its directions are chosen and taken out of the last layer",
            )  # fmt: skip
            go = gr.Button("Forget", variant="primary", elem_id="forget-class")
            shell = gr.Code(label="The same on the command line", language="shell", interactive=False)
        with gr.Column(scale=3, min_width=300):
            about = gr.HTML("<p>Nothing is forgotten yet.</p>", elem_id="outcome")
            gallery = gr.Gallery(
                label="test samples and what they are taken for; the forgotten class first", format="png", columns=4,
                height="auto", allow_preview=False, interactive=False, buttons=[],
            )  # fmt: skip

    @telling
    def run(chosen: str, what: str, how: str) -> tuple[str, list[tuple[Image.Image, str]], str]:
        if how not in quick:
            raise ValueError(f"here are {', '.join(quick)}; `erase-concept vision` has all")
        outcome = forget(chosen, what, how)
        return outcome_html(outcome, how), outcome.pictures, outcome.command

    def choices(chosen: str) -> Any:
        return gr.Dropdown(classes[chosen], value=classes[chosen][3])

    name.change(choices, name, label, **private)
    go.click(run, [name, label, method], [about, gallery, shell], **heavy, **private)
