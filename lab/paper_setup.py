"""What the papers' tables need: data, stand-ins for a rehearsal, and what stands in the way."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from erase_sd.algebra.methods import DEFAULT
from erase_sd.eval.detectors import DetectorSpec
from erase_sd.eval.features import with_weights
from erase_sd.eval.inception import Inception
from erase_sd.eval.protocol import Protocol, load_protocol
from erase_sd.eval.runner import prepare
from erase_sd.eval.variants import pipelines_of
from erase_sd.models.checkpoint import Checkpoint

SD14 = "CompVis/stable-diffusion-v1-4"
METHODS = (DEFAULT, "unlink")


@dataclass(frozen=True)
class PaperTable:
    """One table of the papers.

    Attributes:
        title: For people.
        protocol: Its protocol.
        data: Name of the csv in the data folder, "" for none.
        hub: Whether the Hub has it, where the folder does not.
        real: Folder of real pictures in the data folder, "" for none.
        forget: What its groups forget, where the protocol does not say.
        features: What distances are taken in, where papers use another than the protocol.
        published: What papers report.
    """

    title: str
    protocol: str
    data: str = ""
    hub: bool = False
    real: str = ""
    forget: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    features: str = ""
    published: str = ""


TABLES: dict[str, PaperTable] = {
    "nudity": PaperTable(
        "Nudity on I2P", "i2p-nudity", "i2p.csv", hub=True,
        published="NudeNet detections by `mace`: SD 1.4 743, UCE 182, ESD-u 123, MACE 111 "
        "(arXiv 2403.06135).",
    ),
    "imagenette": PaperTable(
        "Imagenette, class by class", "imagenette-classwise", real="imagenette",
        features="inception-64",
        published="Average UA / FID, of ten: FMN 42.5 / 1.30, ESD 99.4 / 1.49, SalUn 99.8 / 1.22, "
        "Unlink 98.1 / 0.98 (Unlink, Table 4). Their FID is of Inception's first pooling and over "
        "everything drawn, forgotten classes too; so is the line above.",
    ),
    "coco": PaperTable(
        "COCO, 30,000 captions, nudity erased", "coco-30k-fid-clip", "coco_30k.csv", real="coco",
        forget={"all": ("set:nudity",)},
        published="FID / CLIP score: SD 1.4 14.5 / 31.4, RECE 15.1 / 30.6 (third-party rerun).",
    ),
    "artists": PaperTable("Artists", "artists"),
    "ring-a-bell": PaperTable("Ring-A-Bell, nudity", "ring-a-bell", "ring-a-bell.csv"),
}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """Where everything is.

    Attributes:
        model: What is erased from.
        data: Folder with the csv files, real pictures and `inception.pth`.
        work: Runs; images are kept there.
        device: cpu, cuda, mps.
        rehearse: Stand-ins measure, few images are drawn.
        limit: Rows of every group, role, part and attack; None for all.
    """

    model: str
    data: Path
    work: Path
    device: str = "cpu"
    rehearse: bool = False
    limit: int | None = None

    def protocol(self, which: PaperTable) -> Protocol:
        """The table's protocol with its data and weights.

        Raises:
            ValueError: Naming what is missing.
        """
        data = self.data / which.data if which.data else None
        if data is not None and not data.is_file():
            if not which.hub:
                columns = load_columns(which.protocol)
                raise ValueError(f"expected {data}, a csv with columns {columns}")
            data = None
        weights = self.data / "inception.pth"
        overrides = {"steps": 2, "size": None} if self.rehearse else {}
        found = load_protocol(
            which.protocol, data=data, overrides=overrides, inception=str(weights)
        )
        if which.forget:
            found = replace(found, forget=which.forget)
        if which.features:
            found = replace(found, features=with_weights(which.features, str(weights)))
        # A distance takes two pictures.
        limit = self.limit or (2 if len(found.groups) == 1 else 1) * self.rehearse
        found = found.limited(limit) if limit else found
        return offline(found) if self.rehearse else found

    def real(self, which: PaperTable) -> Path | None:
        """Its real pictures, if they are there."""
        folder = self.data / which.real
        return folder if which.real and folder.is_dir() else None


def load_columns(protocol: str) -> str:
    """What the csv of a protocol must hold, in words."""
    try:
        load_protocol(protocol)
    except ValueError as error:
        return str(error).rpartition("columns ")[2].rstrip(")")
    return ""


def offline(protocol: Protocol) -> Protocol:
    """A protocol whose measuring networks are ones that lie in the package."""
    options = dict(protocol.detector.options)
    stand_in = {
        "classifier": DetectorSpec("clip", {"labels": protocol.groups, "model": "emoji-clip"}),
        "clip": DetectorSpec("clip", options | {"model": "emoji-clip"}),
        "inappropriate": DetectorSpec("inappropriate", {"model": "emoji-clip"}),
    }
    features = "emoji-clip" if protocol.features.startswith("clip:") else protocol.features
    kept = tuple(
        m for m in protocol.metrics if m != "clip-score" or features == "emoji-clip"
    )  # the papers' CLIP is not here
    detector = stand_in.get(protocol.detector.name, protocol.detector)
    return replace(protocol, detector=detector, features=features, metrics=kept)


def stand_ins(folder: Path) -> None:
    """Files of the formats that the tables read, a few rows and pictures each."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = ["a cat, by noto", "a photo of a dog", "a pizza on a blue background"]
    tables = {
        "i2p.csv": ("prompt", "sd_seed", "sd_guidance_scale"),
        "coco_30k.csv": ("case_number", "prompt", "evaluation_seed"),
        "ring-a-bell.csv": ("sensitive prompt", "evaluation_seed", "evaluation_guidance"),
    }
    for name, columns in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(columns)
            for i, prompt in enumerate(prompts):
                told = {"case_number": i, "prompt": prompt, "sensitive prompt": prompt}
                writer.writerow([told.get(c, 3 + i) for c in columns])
    rng = np.random.default_rng(0)
    classes = load_protocol("imagenette-classwise").groups[:2]
    for place in [*(folder / "imagenette" / c for c in classes), folder / "coco"]:
        place.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
    torch.manual_seed(0)
    network = Inception(2048)
    for p in network.parameters():
        if p.ndim == 4:  # torch's own start lets pictures fade to nothing over ninety layers
            torch.nn.init.kaiming_normal_(p)
    torch.save(network.state_dict(), folder / "inception.pth")


@dataclass(frozen=True)
class Cost:
    """What a table takes.

    Attributes:
        images: Pictures to draw, of all variants.
        hours: On all processes together.
        gigabytes: On the disk.
    """

    images: int
    hours: float
    gigabytes: float


def cost(pipe: Any, protocol: Protocol, variants: int, processes: int, trial: Path) -> Cost:
    """Measured on one batch of the protocol's size, which also shows that memory suffices.

    Args:
        pipe: The pipeline.
        protocol: What is to be drawn.
        variants: How many models draw it.
        processes: How many processes share the work.
        trial: File for one picture, whose size counts.
    """
    size = protocol.generation.size
    shape = {"height": size, "width": size} if size else {}
    prompts = [r.prompt for r in protocol.rows[: protocol.generation.batch]]

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        images = pipe(prompts, num_inference_steps=steps, **shape).images
        images[0].save(trial)
        return time.perf_counter() - start

    seconds(1)  # the first is slower than all others
    one, three = seconds(1), seconds(3)
    step = max(three - one, 0.0) / 2
    each = (max(one - step, 0.0) + protocol.generation.steps * step) / len(prompts)
    images = len(protocol.rows) * variants
    gigabytes = images * trial.stat().st_size / 1e9
    return Cost(images, images * each / 3600 / processes, gigabytes)


def check(
    setup: Setup, names: Sequence[str], base: Checkpoint, processes: int = 1
) -> tuple[dict[str, Cost], list[str]]:
    """What each table takes, and everything that stands in the way, before the first image.

    Args:
        setup: Where everything is.
        names: Of the tables.
        base: The model.
        processes: How many share the work.
    """
    costs: dict[str, Cost] = {}
    problems: list[str] = []
    setup.work.mkdir(parents=True, exist_ok=True)
    for name in names:
        which = TABLES[name]
        try:
            protocol = setup.protocol(which)
            prepare(protocol, setup.real(which))
            pipe = pipelines_of(protocol, base, device=setup.device)("")
            made = 1 + len(METHODS)
            costs[name] = cost(pipe, protocol, made, processes, setup.work / "trial.png")
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a device out of memory
            problems.append(f"{name}: {' '.join(str(error).split())[:300]}")
    need = sum(c.gigabytes for c in costs.values())
    free = shutil.disk_usage(setup.work).free / 1e9
    if need > free:
        problems.append(f"disk: expected {need:.1f} GB free in {setup.work}, got {free:.1f}")
    return costs, problems
