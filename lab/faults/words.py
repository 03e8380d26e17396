"""Command lines drawn by the types of their arguments: right ones, wrong ones, hostile ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from erase_sd.algebra.methods import METHODS
from erase_sd.cli.main import COMMANDS
from lab.faults.bench import Bench, Outcome
from lab.faults.inside import inside
from lab.shapes import TOKENIZER

PROMPTS = ("cat", "dog", "a photo of a cat", "", " ", "\ud800", "a\udfff", "\x00",
    "\x1b[2J", "a" + "\u0301" * 40, "\u202e cat", "🐱", "日本の猫", "قطة", "{}",
    "{0.__class__}", "%s", "$(id)", "../../etc", "-1", "--force", "set:nudity",
    "set:weapons", "set:none", "set:", "set:../x", "set:/etc/passwd", "file:",
    "file:/dev/zero", "file:/etc/shadow", "file:.", "file:{bad}", "file:{many}",
    "file:{fifo}", "file:/proc/self/mem", "x" * 25_000, "cat " * 300,
    "<|endoftext|>", "\n", "cat\ndog", "Cat", "kitten", )  # fmt: skip
NUMBERS = ("0", "1", "-1", "2", "1e308", "-1e300", "nan", "inf", "-inf", "1e-320",
    "0.5", "999999999999999999999", "", "x", "١", "0x10", "1_0", "1e9", "-0", "+1",
    " 1", "1 ", "٣", "1,5")  # fmt: skip
OPTIONS = ("rank", "epsilon", "ridge", "retain_scale", "erase_scale",
    "preserve_scale", "variant", "lamb", "gamma", "x", "", "__class__", "alpha",
    "threshold")  # fmt: skip
TEXTS = (
    "",
    "a/b",
    "owner/name",
    "\x1b]0;x\x07",
    "é" * 300,
    "<script>",
    "a: b\n- c",
    "x" * 5000,
    "\ud800",
    "..",
)
PATHS = ("{folder}", "{single}", "{erasure}", "{erased}", "{bad}", "{fifo}",
    "{out}/none", ".", "/", "..", "/dev/null", "/dev/zero", "/proc/self/fd/0",
    "{link}", "{loop}", "a\x00b", "\udcff", "x" * 300, "{empty}", "", "~", "{nl}",
    "/etc/passwd", "{dir}")  # fmt: skip
OUTS = ("{out}/a", "{out}/a.safetensors", "{out}/new/deep/a", "{out}/a.png",
    "{out}/x\ny", "{out}/" + "n" * 250, "{out}/" + "n" * 300, "/dev/null",
    "/dev/full", "{folder}", "{single}", "{folder}/x", "{bad}/x", "{fifo}", "",
    "{out}", ".", "/proc/x", "/proc/self/x", "a\x00", "{out}/\udcff", "{link}",
    "{loop}", "{out}/a/../b", "{out}/.hidden", "{out}/-x", "{erasure}/x", "/",
    "{out}/a.SAFETENSORS")  # fmt: skip


FORGOTTEN = ("class:3", "class:", "class:cat", "class:-1", "class:3#5", "class:0#999999",
    "class:99", "subclass:lion", "random:0.1", "random:nan", "random:2", "random:-1",
    "random:1", "index:1,5,7", "index:-1", "index:99999999999999999999", "index:", "x:y",
    "", "class:\ud800", "class:\x1b[2J", "class:3,3", "index:1,1",
    "class:0,1,2,3,4,5,6,7,8,9")  # fmt: skip


class Words:
    """Draws command lines and the files that they name.

    Args:
        bench: The models.
        rng: Of everything drawn.
    """

    def __init__(self, bench: Bench, rng: np.random.Generator) -> None:
        self.rng, self.bench = rng, bench
        self.wild = float(rng.choice([0.1, 0.4, 1.0]))
        here = bench.work / "words"
        here.mkdir(exist_ok=True)
        self.names = {"folder": bench.folder, "single": bench.single, "erasure": bench.erasure,
            "erased": bench.work / "erased", "bad": here / "bad", "fifo": here / "fifo",
            "link": here / "link", "loop": here / "loop", "empty": here / "empty",
            "many": here / "many.txt", "dir": here / "dir", "out": bench.out, "nl": here / "a\nb",
            }  # fmt: skip
        (here / "bad").write_bytes(b"\xff\x00\n" * 99)
        (here / "empty").touch()
        (here / "dir").mkdir(exist_ok=True)
        (here / "a\nb").write_bytes(b"x")
        (here / "many.txt").write_text("\n".join(f"cat {i % 9}" for i in range(2_000)))
        for name, make in (("fifo", os.mkfifo), ("link", self._link), ("loop", self._loop)):
            if not os.path.lexists(here / name):
                make(here / name)

    def _link(self, path: Path) -> None:
        path.symlink_to("/etc/hostname")

    def _loop(self, path: Path) -> None:
        path.symlink_to(path.name)

    def pick(self, values: tuple[str, ...]) -> str:
        """One of some values, its names filled in."""
        value = values[int(self.rng.integers(len(values)))]
        for name, path in self.names.items():
            value = value.replace(f"{{{name}}}", str(path))
        return value

    def some(self, chance: float) -> bool:
        """Whether, by a chance."""
        return bool(self.rng.random() < chance)

    def odd(self, chance: float) -> bool:
        """Whether something is as it should not be: in tame lines seldom, so that they get far."""
        return self.some(chance * self.wild)

    def model(self) -> list[str]:
        """Mostly a small one that is there."""
        if not self.odd(0.4):
            return ["--model", str(self.bench.folder)]
        if self.some(0.4):
            return ["--model", str(self.bench.single), "--tokenizer", str(TOKENIZER)]
        return ["--model", self.pick(PATHS), *(["--tokenizer", self.pick(PATHS)] if self.some(
            0.3) else []), *(["--variant", self.pick(TEXTS)] if self.some(0.3) else [
            ])]  # fmt: skip

    def concept(self) -> list[str]:
        """What to forget, and how."""
        line = ["--forget", "cat" if not self.odd(0.6) else self.pick(PROMPTS)]
        for option, values, chance in (("--retain", PROMPTS, 0.2), ("--rank",
            NUMBERS, 0.3), ("--epsilon", NUMBERS, 0.1), ("--strength", NUMBERS, 0.3),
            ("--tokens", ("words", "all", "x", ""), 0.1), ("--toward", PROMPTS, 0.1),
            ("--name", TEXTS, 0.1), ("--forget", PROMPTS, 0.2), ):  # fmt: skip
            if self.odd(chance):
                line += [option, self.pick(values)]
        if self.some(0.5):
            line += ["--method", str(self.rng.choice(list(METHODS)))]
        if self.odd(0.2):
            line += [
                "--option",
                f"{self.pick(OPTIONS)}{self.pick(('=', '', '=='))}{self.pick(NUMBERS)}",
            ]
        return line + (["--robust"] if self.some(0.1) else [])

    def out(self) -> list[str]:
        """Where to write."""
        good = self.pick(("{out}/a", "{out}/a.safetensors"))
        line = ["--out", self.pick(OUTS) if self.odd(0.5) else good]
        return line + [flag for flag in ("--force", "--json", "--keep-undo") if self.some(0.2)]

    def evaluation(self, erasure: str) -> list[str]:
        """Words of `eval`; what would draw pictures only says so."""
        kind = self.pick(("list", "show", "compare", "report", "run", "run", "run", "x"))
        line = [kind, self.pick((*PATHS, "emoji-objects", "emoji-artists", "i2p-nudity"))]
        if kind != "run":
            return line
        line = line if self.odd(0.5) else [kind, "emoji-objects"]
        for option, values, chance in (("--limit", NUMBERS, 0.3), ("--steps", NUMBERS,
            0.2), ("--batch", NUMBERS, 0.2), ("--data", PATHS, 0.1), ("--also", PATHS, 0.1),
            ("--real", PATHS, 0.1), ("--inception", TEXTS, 0.1),
            ("--device", ("cpu", "cuda", "x", ""), 0.1)):  # fmt: skip
            if self.odd(chance):
                line += [option, self.pick(values)]
        if self.some(0.5):
            line += ["--erasure", erasure]
        if self.some(0.4):
            line += ["--method", str(self.rng.choice(list(METHODS)))]
        return [*line, "--out", self.pick(("{out}/a", *OUTS)), "--dry-run"]

    def vision(self) -> list[str]:
        """Words of `vision`; mostly a small network that is trained for one epoch."""
        if self.some(0.2):
            return [self.pick(("methods", "x", "")), *(["--json"] if self.some(0.3) else [])]
        line = ["unlearn", "--model", self.pick((*PATHS, "mlp:{bad}", "mlp:{single}",
            "clip:{folder}", "emoji-clip", "resnet20")) if self.odd(0.3) else "mlp"]  # fmt: skip
        line += [] if self.odd(0.3) else ["--train", "--epochs", self.pick(
            ("0", "-1", "x", "")) if self.odd(0.2) else "1"]  # fmt: skip
        line += ["--forget", self.pick(FORGOTTEN) if self.some(0.6) else "class:3"]
        for option, values, chance in (("--data", ("digits", *PATHS), 0.3), ("--size",
            ("8", "0", "-1", "x"), 0.1), ("--classes-file", PATHS, 0.1), ("--seed",
            NUMBERS, 0.1), ("--cache", (*PATHS, "{out}/c"), 0.2), ("--cache-out",
            OUTS, 0.1), ("--device", ("cpu", "cuda", "x"), 0.05)):  # fmt: skip
            if self.odd(chance):
                line += [option, self.pick(values)]
        if self.odd(0.2):
            line += ["--option", f"{self.pick(OPTIONS)}={self.pick(NUMBERS)}"]
        return line + (self.out() if self.some(0.6) else []) + ["--dry-run"] * self.some(0.4)

    def line(self) -> list[str]:
        """A command line."""
        # "demo" has no end; "push" would publish.
        command = str(self.rng.choice([c for c in COMMANDS if c not in ("demo", "push")]))
        number, path, erasure = self.pick(NUMBERS), self.pick(PATHS), str(self.bench.erasure)
        erasure = path if self.odd(0.4) else erasure
        dry = ["--dry-run"] if self.some(0.5) else []
        rest = {"erase": [*self.model(), *self.concept(), *self.out(), "--images",
            "0", *dry], "preflight": [*self.model(), *self.concept(), *([
            "--max-drift", number] if self.some(0.2) else [])], "apply": [erasure, *self.model(
            ), *self.out(), *(["--scale", number] if self.some(0.5) else []), *dry],
            "remove": [path if self.odd(0.5) else str(self.names["erased"]), *self.out(
            )], "export": [erasure, *self.model(), *self.out(), "--style", self.pick(
            ("peft", "kohya", "x"))], "verify": [erasure, *self.model()], "card": [
            erasure, "--base-model", self.pick(TEXTS), *self.out()], "eval": self.evaluation(
            erasure), "vision": self.vision(),
            "generate": [*self.model(), "--prompt", self.pick(PROMPTS), "--steps",
            "0", *self.out()], "prompts": [self.pick(("list", "show", "x")), self.pick(
            (*PATHS, "weapons", "x.yaml"))], "methods": ["--json"] if self.some(0.5) else [
            number], "train": [*self.model(), *self.concept(), *self.out(), "--method",
            self.pick(("esd-x", "salun", "x")), "--option", self.pick(("steps=0", "steps=x"))],
            "doctor": [str(self.bench.out), *(["--remove"] if self.some(0.5) else [
            ]), *([path] if path not in ("/", "", ".", "..", "~") else [])], }[
            command]  # fmt: skip
        line = [command, *rest]
        if self.odd(0.1):
            line.pop(int(self.rng.integers(1, len(line)))) if len(line) > 1 else None
        if self.odd(0.05):
            line.insert(int(self.rng.integers(1, len(line) + 1)), self.pick(TEXTS))
        if line[:2] == ["eval", "run"] and "--dry-run" not in line:
            line.append("--dry-run")  # pictures are not what is tried here
        # A model that the command does not read is a file like any other, and may be replaced.
        for i, word in enumerate(line[1:], 1):
            for model in (str(self.bench.single), str(self.bench.folder)):
                if line[i - 1] == "--out" and word.startswith(model):
                    line[i] = word if model in line[:i] else f"{self.bench.out}/a"
                    break
        return line


def command_line(bench: Bench, rng: np.random.Generator) -> Outcome:
    """One command line, run here."""
    words = Words(bench, rng)
    line = words.line()
    bench.clear()
    before: set[str] = set()
    os.chdir(words.names["dir"])
    ran = inside(line)
    wrong = ran.wrong(bench.out, before) or bench.spoilt()
    left = os.listdir(words.names["dir"])
    if not wrong and left and ran.code:
        wrong = f"FAILED AND LEFT {left}"
    for name in left:
        path = words.names["dir"] / name
        bench.remove(path)
    if wrong:
        return line[0], f"{wrong}: {line!r:.600} {ran.said[-600:]!r}"
    return line[0], f"exit {ran.code}"
