"""What happens on a click: plain functions of the server, the visitor's session and the inputs."""

from __future__ import annotations

import contextlib
import html
import secrets
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from erase_sd.artifact.concept import ErasedConcept
from erase_sd.artifact.erasure import Erasure
from erase_sd.demo.budget import bounded_memory
from erase_sd.demo.classifier import forget_class
from erase_sd.demo.html import outcome_html, preflight_html, report_html, scores_html
from erase_sd.demo.inputs import Concept, View
from erase_sd.demo.model_session import ModelSession
from erase_sd.demo.pictures import save_pictures
from erase_sd.demo.server import Server
from erase_sd.demo.snippets import python_code, shell_commands
from erase_sd.demo.visitor import Session

NOTHING = "<p>Nothing is erased yet.</p>"


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total` pictures, and in words."""

    done: int
    total: int
    told: str


@dataclass(frozen=True)
class Update:
    """What a handler tells the page; None leaves that part as it is.

    Attributes:
        session: What the page shows from now on.
        about: HTML of the pre-flight.
        progress: How far the job is.
    """

    session: Session | None = None
    about: str | None = None
    progress: Progress | None = None


Updates = Generator[Update, None, None]  # closed when nobody waits any more


@dataclass(frozen=True)
class ClassUpdate:
    """What forgetting a class shows.

    Attributes:
        about: HTML of the numbers.
        pictures: Files of test samples with what they are taken for.
        shell: The same on the command line.
    """

    about: str
    pictures: tuple[tuple[Path, str], ...]
    shell: str


def preflight(server: Server, session: Session, concept: Concept) -> Updates:
    """Solve, and tell what the erasure would hit; nothing is drawn or kept."""
    del session  # a look changes nothing
    yield Update(about=_solve(server, concept)[2])


def erase(server: Server, session: Session, concept: Concept, view: View) -> Updates:
    """Erase one concept more, and draw before and after."""
    yield Update(progress=Progress(0, 1, "solving"))
    model, erasure, told = _solve(server, concept)
    own = server.limits.prompt_list(view.own.replace(",", " "), what="look at")
    stack = model.stacked(session.stack if session.model == model.name else (), erasure)
    yield Update(about=told)
    new = replace(session, model=model.name, stack=stack, scale=view.scale, seed=view.seed)
    yield from _redraw(model, replace(new, own=own[0] if own else ""))


def rescale(server: Server, session: Session, scale: float) -> Updates:
    """Let all that is erased act more or less."""
    yield from _redraw(server.model(session.model), replace(session, scale=scale))


def strengthen(server: Server, session: Session, index: int, strength: float) -> Updates:
    """Let one concept's edit go more or less far; the others stay as they are.

    Args:
        server: What visitors share.
        session: The visitor's.
        index: Which of the session's concepts.
        strength: 0 is off, 1 projects out.

    Raises:
        ValueError: If there is no such concept.
    """
    if index >= len(session.names):
        raise ValueError("that concept is erased no more")
    name = session.names[index]
    stack = tuple(
        replace(e, concepts=tuple(_as_far(c, strength, name) for c in e.concepts))
        for e in session.stack
    )
    yield from _redraw(server.model(session.model), replace(session, stack=stack))


def _as_far(concept: ErasedConcept, strength: float, name: str) -> ErasedConcept:
    return replace(concept, strength=strength) if concept.name == name else concept


def remove(server: Server, session: Session, names: tuple[str, ...]) -> Updates:
    """Take some concepts out of what is erased.

    Raises:
        ValueError: If none is named.
    """
    if not names:
        raise ValueError("tick what to take out first")
    stack = []
    for erasure in session.stack:
        rest = erasure
        for name in set(names) & set(erasure.names):
            rest = rest - name
        if rest.concepts:
            stack.append(rest)
    if not stack:
        yield Update(about=NOTHING)
    yield from _redraw(server.model(session.model), replace(session, stack=tuple(stack)))


def add(server: Server, session: Session, path: Path, scale: float, model_name: str) -> Updates:
    """Add an erasure file that the visitor uploaded; the upload is deleted.

    Raises:
        ValueError: If it is not the visitor's, or not for this model.
    """
    path = path.resolve()
    if path.parent.parent != (session.home / "uploads").resolve():
        raise ValueError("that file is not yours")
    try:
        model = server.model(model_name)
        erasure = model.open_file(path)
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)  # each upload has a folder of its own
    stack = model.stacked(session.stack if session.model == model.name else (), erasure)
    yield Update(about=f"<p>added {html.escape(', '.join(erasure.names))}</p>")
    new = replace(session, model=model.name, stack=stack, scale=scale, brought=True)
    yield from _redraw(model, new)


def choose(session: Session, index: int) -> tuple[Path, Path] | None:
    """The pictures for the slider, before and after; None where there is no such one."""
    pictures = session.pictures
    if pictures is None or not 0 <= index < len(pictures.before):
        return None
    return pictures.before[index], pictures.after[index]


def unlearn_class(
    server: Server, session: Session, network: str, label: str, method: str
) -> Generator[ClassUpdate, None, None]:
    """Make a classifier forget a class."""
    with bounded_memory(server.limits.job_bytes):
        outcome = forget_class(network, label, method)
    place = session.home / "class"
    with _new_folder(place) as folder:
        shown = []
        for i, (image, told) in enumerate(outcome.pictures):
            image.save(folder / f"sample-{i}.png")
            shown.append((folder / f"sample-{i}.png", told))
    about = outcome_html(method, outcome.seconds, outcome.numbers, outcome.classes)
    for old in sorted(place.iterdir(), key=lambda p: p.stat().st_mtime)[: -server.limits.tabs]:
        shutil.rmtree(old)
    yield ClassUpdate(about, tuple(shown), outcome.command)


def show_report(server: Server, name: str) -> str:
    """A report, framed.

    Raises:
        ValueError: If it is none of the server's.
    """
    if not name:
        return ""
    path = server.pages().get(name)
    if path is None:
        raise ValueError("that report is gone; reload the page")
    return report_html(name, path.read_text(encoding="utf-8"))


def _solve(server: Server, concept: Concept) -> tuple[ModelSession, Erasure, str]:
    model = server.model(concept.model)
    forget = server.limits.prompt_list(concept.forget, what="forget")
    retain = server.limits.prompt_list(concept.retain, what="keep")
    typed = concept.forget.strip()
    name = typed if typed.startswith("set:") else next(iter(forget), None)
    instead = server.limits.prompt_list(concept.toward, what="put in its place")
    if len(instead) > 1:
        raise ValueError(f"expected one prompt to put in its place, got {len(instead)}")
    erasure, seconds = model.erase(
        forget,
        retain,
        method=concept.method,
        robust=concept.robust,
        name=name,
        toward=next(iter(instead), None),
    )
    return model, erasure, preflight_html(erasure, model.words_hit(erasure), seconds)


def _redraw(model: ModelSession, session: Session) -> Updates:
    """Draw what a visitor's erasures make of the prompts; give up the thread between batches."""
    if not session.stack:
        empty = Session(session.home, session.model, scale=session.scale)
        yield Update(session=replace(empty, own=session.own, seed=session.seed))
        return
    shots = model.shots(session.stack, session.own, session.seed)
    drawn: list[list[Image.Image]] = []  # by the untouched model, by the erased one
    start, total = time.perf_counter(), 2 * len(shots)
    for stack in ((), session.stack):
        pictures: list[Image.Image] = []
        for pictures in model.draw(shots, stack, session.scale):
            done = len(shots) * len(drawn) + len(pictures)
            left = (time.perf_counter() - start) / done * (total - done)
            yield Update(progress=Progress(done, total, f"drawing, about {left:.0f} s left"))
        drawn.append(pictures)
    before, after = drawn
    seen = model.seen(before), model.seen(after)
    with _new_folder(session.home / "work") as folder:
        what = (model.name, session.stack, session.scale)
        new = replace(
            session,
            shots=tuple(shots),
            pictures=save_pictures(before, after, folder),
            scores=scores_html(shots, *seen, judged=model.judged),
            folder=folder,
            files=model.take_home(session.stack, session.scale, folder),
            python=python_code(*what, brought=session.brought),
            shell=shell_commands(*what, brought=session.brought),
        )
    yield Update(session=new)


@contextlib.contextmanager
def _new_folder(inside: Path) -> Iterator[Path]:
    """A folder with a name that cannot be guessed; deleted if what fills it fails."""
    folder = inside / secrets.token_hex(16)
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
