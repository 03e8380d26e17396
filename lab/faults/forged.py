"""Files of every type that the tool reads, damaged or forged, and a command that reads them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.file import dump
from erase_sd.eval.protocol import HERE as PROTOCOLS
from lab.faults.bench import Bench, Outcome
from lab.faults.changes import bytes_changed, header_changed, value_changed
from lab.faults.inside import inside
from lab.shapes import TOKENIZER


class Forge:
    """Makes forged files in a folder of its own.

    Args:
        bench: The models that good ones are made of.
        rng: Of everything drawn.
    """

    def __init__(self, bench: Bench, rng: np.random.Generator) -> None:
        self.bench, self.rng = bench, rng
        self.here = bench.work / "forged"
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir()
        self.kinds: dict[str, Callable[[], list[str]]] = {
            "erasure file, damaged": self.damaged_erasure,
            "erasure file, forged": self.forged_erasure,
            "erasure file, forged factors": self.forged_factors,
            "single file's header": self.single,
            "prompt set": self.prompt_set,
            "prompt file": self.prompt_file,
            "protocol": self.protocol,
            "report": self.report,
            "model folder": self.folder,
            "undo file": self.undo,
            "erased folder": self.erased,
        }

    def _write(self, name: str, data: bytes) -> str:
        (self.here / name).write_bytes(data)
        return str(self.here / name)

    def _reads_erasure(self, path: str) -> list[str]:
        model = ["--model", str(self.bench.folder)]
        out = ["--out", str(self.bench.out / "a")]
        return [
            ["verify", path, *model],
            ["card", path],
            ["apply", path, *model, *out, "--allow-other-base"],
            ["apply", path, path, *model, *out],
            ["export", path, *model, *out, "--allow-other-base"],
            ["remove", path, "--concept", "cat", *out],
            ["eval", "run", "emoji-objects", "--erasure", path, *out, "--dry-run"],
        ][int(self.rng.integers(7))]

    def damaged_erasure(self) -> list[str]:
        """Bytes changed, or a header that lies."""
        data = self.bench.erasure.read_bytes()
        change = bytes_changed if self.rng.random() < 0.5 else header_changed
        return self._reads_erasure(self._write("e.safetensors", change(data, self.rng)))

    def forged_erasure(self) -> list[str]:
        """A description changed, its checksum right."""
        erasure = Erasure.load(self.bench.erasure)
        about = erasure.describe()
        for _ in range(int(self.rng.integers(1, 4))):
            about = value_changed(about, self.rng)
        return self._forged(about, erasure._tensors())

    def forged_factors(self) -> list[str]:
        """Tensors changed, their checksum right."""
        erasure = Erasure.load(self.bench.erasure)
        tensors = erasure._tensors()
        name = list(tensors)[int(self.rng.integers(len(tensors)))]
        one = tensors[name]
        odd = [one * 1e30, one * float("nan"), one[:1], one.T.contiguous(), one.half(
            ), torch.zeros_like(one), one[:, :0], one.to(torch.int32), one.flatten(),
            torch.zeros(65_536, 1), torch.zeros(30_000, 0), one * 1e11, -one, one.to(
            torch.bfloat16), torch.cat([one, one], 1), ]  # fmt: skip
        tensors[name] = odd[int(self.rng.integers(len(odd)))].clone()
        return self._forged(erasure.describe(), tensors)

    def _forged(self, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> list[str]:
        try:
            data = dump(about, tensors)
        except (ValueError, UnicodeEncodeError):  # what cannot even be written
            data = b"{}"
        return self._reads_erasure(self._write("e.safetensors", data))

    def single(self) -> list[str]:
        """A checkpoint of one file."""
        data = self.bench.single.read_bytes()
        path = self._write("m.safetensors", header_changed(data, self.rng))
        return ["erase", "--model", path, "--tokenizer", str(TOKENIZER), "--forget",
            "cat", "--images", "0", "--method", "unlink", "--rank", "1", "--out",
            str(self.bench.out / "a.safetensors")]  # fmt: skip

    def prompt_set(self) -> list[str]:
        """YAML."""
        good = (
            b"description: x\nconcepts:\n  gun: [rifle, pistol]\n  knife: []\n"
            b"templates: ['{}', 'a photo of {}']\nneutral: [dog, house]\n"
        )
        path = self._write("s.yaml", self._yaml(good))
        if self.rng.random() < 0.5:
            return ["prompts", "show", path, *(["--json"] if self.rng.random() < 0.5 else [])]
        return ["erase", "--model", str(self.bench.folder), "--forget",
            f"set:{path}", "--dry-run", "--images", "0", "--method", "unlink"]  # fmt: skip

    def _yaml(self, good: bytes) -> bytes:
        lines = ["a: &a [x]"]
        for one, other in zip("abcdefghijk", "bcdefghijkl", strict=True):
            lines.append(f"{other}: &{other} [{', '.join(['*' + one] * 9)}]")
        bombs = (
            "\n".join([*lines, "concepts: *l"]).encode(),
            b"concepts: " + b"[" * 5_000,
            b"concepts: &a [*a]\n",
            b"concepts: {x: &a {y: *a}}\n",
        )
        if self.rng.random() < 0.1:
            return bombs[int(self.rng.integers(len(bombs)))]
        return bytes_changed(good, self.rng)

    def prompt_file(self) -> list[str]:
        """Lines of text."""
        good = "\n".join(["cat", "a photo of a cat", "🐱", "kitten " * 40, "x\u0301" * 20]).encode()
        path = self._write("p.txt", bytes_changed(good, self.rng))
        return ["erase", "--model", str(self.bench.folder), "--forget",
            f"file:{path}", "--dry-run", "--images", "0", "--method", "unlink"]  # fmt: skip

    def protocol(self) -> list[str]:
        """A protocol."""
        files = sorted(PROTOCOLS.glob("emoji-*.yaml"))
        good = files[int(self.rng.integers(len(files)))].read_bytes()
        path = self._write("p.yaml", self._yaml(good))
        return ["eval", "show", path, *(["--json"] if self.rng.random() < 0.3 else [])]

    def report(self) -> list[str]:
        """Results of a run."""
        scores = {"accuracy": 0.5, "drift": 0.1, "of": 3}
        good = {"protocol": {"name": "p", "hash": "0" * 12, "rows": 3, "groups": [
            "cat"], "detector": {"name": "judge"}}, "variants": {n: {"scores": {
            "forget": scores, "retain": scores}, "about": {"model": "m"}, "groups": {
            }} for n in ("original", "x")}, }  # fmt: skip
        text = json.dumps(value_changed(good, self.rng)).encode("utf-8", "surrogatepass")
        run = self.here / "run"
        run.mkdir()
        path = run / "results.json"
        path.write_bytes(text if self.rng.random() < 0.7 else bytes_changed(text, self.rng))
        lines = (
            ["eval", "compare", str(run)],
            ["eval", "compare", str(run), str(path), "--json"],
            ["eval", "report", str(run), "--out", str(self.bench.out / "r.html")],
            ["card", str(self.bench.erasure), "--results", str(run)],
        )
        return lines[int(self.rng.integers(len(lines)))]

    def folder(self) -> list[str]:
        """A diffusers folder with one of its small files changed."""
        path = self._copy(self.bench.folder)
        small = [p for p in sorted(path.rglob("*")) if p.is_file() and p.stat().st_size < 3_000_000]
        victim = small[int(self.rng.integers(len(small)))]
        kind = int(self.rng.integers(6))
        if kind == 0 and victim.suffix == ".json":
            value = json.loads(victim.read_text())
            text = json.dumps(value_changed(value, self.rng)) if value else "[]"
            victim.write_bytes(text.encode("utf-8", "surrogatepass"))
        elif kind == 1:
            victim.unlink()
            victim.symlink_to(str(self.rng.choice(["/etc/passwd", "/dev/zero", victim.name, "x"])))
        elif kind == 2:
            victim.unlink()
            (os.mkfifo if self.rng.random() < 0.5 else os.mkdir)(victim)
        elif victim.suffix == ".safetensors" and kind > 3:
            victim.write_bytes(header_changed(victim.read_bytes(), self.rng))
        else:
            victim.write_bytes(bytes_changed(victim.read_bytes(), self.rng))
        return ["erase", "--model", str(path), "--forget", "cat", "--images", "0",
            "--method", "unlink", "--rank", "1", "--out", str(self.bench.out / "a")]  # fmt: skip

    def _copy(self, source: Path) -> Path:
        path = self.here / "model"
        shutil.copytree(source, path, copy_function=os.link)
        for file in [p for p in path.rglob("*") if p.is_file() and p.stat().st_size < 3_000_000]:
            content = file.read_bytes()  # of its own, so that the original stays
            file.unlink()
            file.write_bytes(content)
        return path

    def undo(self) -> list[str]:
        """Original tensors that are not."""
        good = (self.bench.work / "erased.undo.safetensors").read_bytes()
        change = bytes_changed if self.rng.random() < 0.5 else header_changed
        path = self._write("u.safetensors", change(good, self.rng))
        return [
            "remove",
            str(self.bench.work / "erased"),
            "--undo",
            path,
            "--out",
            str(self.bench.out / "a"),
        ]

    def erased(self) -> list[str]:
        """An erased folder whose words and erasure do not agree."""
        path = self._copy(self.bench.work / "erased")
        victim = path / ("erasure.json" if self.rng.random() < 0.5 else "erasure.safetensors")
        victim.write_bytes(bytes_changed(victim.read_bytes(), self.rng))
        lines = (["verify", str(path), "--model", str(self.bench.folder)], ["card", str(path)])
        return lines[int(self.rng.integers(2))]


def forged_file(bench: Bench, rng: np.random.Generator) -> Outcome:
    """One forged file, read by one command."""
    forge = Forge(bench, rng)
    kind = str(rng.choice(list(forge.kinds)))
    bench.clear()
    ran = inside(forge.kinds[kind]())
    wrong = ran.wrong(bench.out, set()) or bench.spoilt()
    if wrong:
        return kind, f"{wrong}: {list(ran.argv)!r:.400} {ran.said[-600:]!r}"
    return kind, "refused in one line" if ran.code else "harmless, done"
