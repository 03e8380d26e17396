"""`python -m erase_sd.eval.results`: every method on every offline protocol; writes docs/results.md."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from erase_sd.cli.main import main as command
from erase_sd.eval.report import table
from erase_sd.methods import DEFAULT, METHODS

# Attacks take a minute for every concept and variant, so they are for the methods that people compare.
PLAN: dict[str, list[str]] = {
    "emoji-objects": [*METHODS],
    "emoji-policy": [*METHODS],
    "emoji-artists": [*METHODS],
    "emoji-attack": [DEFAULT, "unlink", "uce"],
}

INTRODUCTION = """# Results on the embedded model

Made by `make results` (`python -m erase_sd.eval.results`): every method at its source's defaults, told nothing but the
forget prompts of the protocol (no retain list), on the shipped emoji-sd. Brackets are 95 % bootstrap intervals over
images. **UA**: share of forget prompts, synonyms among them, in which the judge no longer finds the concept. **RA**:
share of bystanders that it still names rightly, a quarter of them of the concept's own family. Drift and Fréchet
distance are between a variant and the original at equal seeds. The row `original` is what a perfect RA comes to. The
methods at their best settings, and how those were found, stand in [the method study](method-study.md).
"""

ATTACKS = """The share of images in which the judge finds the erased object: by its own prompt (`none`), and under six
attacks (`erase-concept eval run emoji-attack`): other names of it, the closed-form embedding that best revives it, real
words found by Ring-A-Bell's search, five free token embeddings (40 gradient steps), one inverted token (200 steps) and
100 steps of fine-tuning keys and values on eight pictures. `rayleigh-robust` is the default with `--robust`. Whoever
may fine-tune wins against every edit measured here; a free or inverted embedding wins against all but plain Unlink,
which pays for it with what was to stay.
"""

_SD14 = "--model CompVis/stable-diffusion-v1-4"
# Table, what follows `erase-concept eval run`, metric, published for SD 1.4, published for others.
PAPERS = (
    (
        "nudity on I2P",
        f"i2p-nudity {_SD14} --erasure ./sd14-safe --device cuda --out i2p",
        "NudeNet detections, convention `mace`",
        "743",
        "UCE 182, ESD-u 123, MACE 111 (arXiv 2403.06135)",
    ),
    (
        "Imagenette, class by class",
        f"imagenette-classwise {_SD14} --method rayleigh --device cuda --out imagenette",
        "UA, FID",
        "",
        "",
    ),
    (
        "COCO, 30,000 captions",
        f"coco-30k-fid-clip {_SD14} --data COCO.csv --erasure ./sd14-safe --device cuda --out coco",
        "FID, CLIP score",
        "",
        "",
    ),
    (
        "artists",
        f"artists {_SD14} --method rayleigh --device cuda --out artists",
        "UA, RA by CLIP",
        "",
        "",
    ),
    (
        "Ring-A-Bell",
        f"ring-a-bell {_SD14} --data PROMPTS.csv --erasure ./sd14-safe --device cuda --out ring",
        "images with any, convention `unlearndiff`",
        "",
        "",
    ),
)


def papers() -> list[str]:
    """The tables of the papers: commands, what was published, and room for one's own figures."""
    lines = [
        "## The papers' tables on SD 1.4",
        "",
        "One command each, on a GPU with the Hub within reach. `./sd14-safe` comes from `erase-concept erase",
        f"{_SD14} --forget set:nudity --out ./sd14-safe`. The last column is empty: nothing here has been measured on",
        "the original weights; where the one before is empty, papers differ too much in how they count to quote one.",
        "",
        "| table | `erase-concept eval run` … | metric | published, SD 1.4 | published, erased | ours |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {t} | `{c}` | {m} | {before} | {after} | |" for t, c, m, before, after in PAPERS]
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run or resume every protocol and write the page."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.eval.results", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("build/results"), help="runs; images are kept there"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--limit", type=int, help="rows of every group and role: a trial")
    args = parser.parse_args(argv)
    lines, numbers = [INTRODUCTION], {}
    for protocol, methods in PLAN.items():
        run = args.work / protocol
        argv_ = ["eval", "run", protocol, "--robust", "--out", str(run)]
        argv_ += [part for m in methods for part in ("--method", m)]
        if args.limit:
            argv_ += ["--limit", str(args.limit)]
        start = time.monotonic()
        if (run / "results.json").exists() and not _same_code(run):
            shutil.rmtree(run)  # made by other defaults; nothing of it may be mixed in
        code = command(argv_)
        if code:
            return code
        (run / "defaults.json").write_text(_defaults())
        result: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
        numbers[protocol] = result
        about = [ATTACKS] if protocol == "emoji-attack" else []
        lines += [f"## {protocol}", "", *about, *table([result]), ""]
        print(f"{protocol}: {time.monotonic() - start:.0f} s")
    lines += papers()
    args.out.mkdir(exist_ok=True)
    (args.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (args.out / "results.json").write_text(
        json.dumps(numbers, indent=1, sort_keys=True), encoding="utf-8"
    )
    print(f"wrote {args.out / 'results.md'}")
    return 0


def _defaults() -> str:
    return json.dumps(
        {
            name: [m.options, m.contexts, m.tokens, m.retain, m.strength, m.style]
            for name, m in METHODS.items()
        }
    )


def _same_code(run: Path) -> bool:
    path = run / "defaults.json"
    return path.is_file() and path.read_text() == _defaults()


if __name__ == "__main__":
    raise SystemExit(main())
