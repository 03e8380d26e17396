"""`erase-concept card`: a model card for what is published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from erase_sd.cli.common import parser

if TYPE_CHECKING:
    from erase_sd.artifact.card import Publication

EXAMPLES = """  erase-concept card no-cat.safetensors
  erase-concept card ./sd15-safe --base-model OWNER/NAME --out ./sd15-safe/README.md
  erase-concept card no-cat.safetensors --results results/objects

Without --out the card is printed; --results adds the numbers of an evaluation. `push` publishes an
erasure file with its card."""


def run(argv: list[str]) -> int:
    """Write or print the card."""
    p = parser(
        "card",
        "A model card (Markdown, with the Hub's metadata) for an erasure or an erased model.",
        EXAMPLES,
    )
    p.add_argument("path", type=Path, help="erasure file or erased checkpoint")
    add_card(p)
    p.add_argument("--out", type=Path, help="file to write (default: the screen)")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    args = p.parse_args(argv)
    from erase_sd.models.files import atomic_path, check_apart
    from erase_sd.operations.common import load_erasure

    if args.out is not None and not args.path.is_dir():  # a card belongs into its folder
        check_apart(args.out, args.path)
    text = load_erasure(args.path).card(publication(args, args.path))
    if args.out is None:
        print(text, end="")
        return 0
    with atomic_path(args.out, force=args.force) as draft:
        draft.write_text(text, encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


def add_card(p: argparse.ArgumentParser) -> None:
    """What a card says that the erasure does not know."""
    p.add_argument("--base-model", default="", help="Hub id of what it was made from")
    p.add_argument(
        "--license",
        default="",
        help="licence of the base model, as the Hub names it (such as creativeml-openrail-m)",
    )
    p.add_argument("--results", type=Path, help="folder of an `eval run` with these numbers")


def publication(args: argparse.Namespace, path: Path) -> Publication:
    """The same from `add_card`'s arguments, for what lies at a path."""
    from erase_sd.artifact.card import Publication
    from erase_sd.eval.report import table
    from erase_sd.eval.run_folder import results_of, understood
    from erase_sd.operations.common import erasure_path

    evaluation: list[str] = []
    if args.results:
        with understood(args.results):
            evaluation = table([results_of(args.results)])
    picture = (path / "before_after.png").is_file()
    checkpoint = path.exists() and erasure_path(path) != path
    return Publication(
        path.name,
        args.base_model,
        args.license,
        picture,
        evaluation,
        relation="finetune" if checkpoint else "adapter",
    )
