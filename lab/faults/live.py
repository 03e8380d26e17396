"""A live pipeline in two threads, and interrupted: what it says is erased is what is erased."""

from __future__ import annotations

import contextlib
import signal
import threading
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from erase_sd import erase, restore
from erase_sd.artifact.erasure import Erasure, combine
from erase_sd.pipelines.live import LiveErasure
from lab.faults.bench import Bench, Outcome


@cache
def _pipeline(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return pipe, {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}


def _agrees(pipe: Any, original: dict[str, torch.Tensor]) -> str:
    """Whether the weights are what is said to be erased; else what is wrong."""
    live = LiveErasure.of(pipe)
    expected = original
    if live.erasures:
        total: Erasure = combine(live.erasures)
        expected = original | total.edit_weights({n: original[n] for n in total.base})
    for name, weight in pipe.unet.named_parameters():
        if not torch.allclose(weight, expected[name], atol=1e-5):
            return f"{name} is not what {live.erasures and combine(live.erasures).names} says"
    return ""


def _restored(pipe: Any, original: dict[str, torch.Tensor]) -> bool:
    restore(pipe)
    return all(torch.equal(w, original[n]) for n, w in pipe.unet.named_parameters())


WORDS = ("cat", "dog", "pizza", "car", "house", "tree")


def threads(bench: Bench, rng: np.random.Generator) -> Outcome:
    """Two threads erase from one pipeline."""
    pipe, original = _pipeline(bench.folder)
    failed: list[str] = []
    pair = [str(w) for w in rng.choice(WORDS, 2, replace=False)]

    def work(word: str) -> None:
        try:
            erase(pipe, word)
        except ValueError as error:
            failed.append(str(error))
        except BaseException as error:
            failed.append(f"UNEXPECTED {type(error).__name__}: {error}")

    started = [threading.Thread(target=work, args=(w,)) for w in pair]
    for one in started:
        one.start()
    for one in started:
        one.join()
    names = {n for e in LiveErasure.of(pipe).erasures for n in e.names}
    wrong = _agrees(pipe, original)
    back = _restored(pipe, original)
    if wrong or not back or any(f.startswith("UNEXPECTED") for f in failed):
        return "two threads", f"WRONG: {wrong}, restored {back}, {failed}"
    if len(names) + len(failed) < 2:
        return "two threads", f"LOST: {pair}, {names}, {failed}"
    return "two threads", "both erased" if not failed else "one refused"


def interrupted(bench: Bench, rng: np.random.Generator) -> Outcome:
    """Ctrl-C at a random moment of an erasure."""
    pipe, original = _pipeline(bench.folder)

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    ended = "done"
    with contextlib.suppress(KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(0.001, 0.6)))
        try:
            erase(pipe, str(rng.choice(WORDS)))
        except KeyboardInterrupt:
            ended = "interrupted"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    wrong = _agrees(pipe, original)
    if wrong or not _restored(pipe, original):
        return "interrupted", f"WRONG: {wrong}"
    return "interrupted", ended
