"""`erase-concept card`: a model card for what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from erase_sd.cli.common import parser

EXAMPLES = """  erase-concept card ./sd15-safe --base-model OWNER/NAME --out ./sd15-safe/README.md
  erase-concept card no-cat.safetensors --results results/objects      with the numbers of an evaluation
  erase-concept card no-cat.safetensors                                on the screen"""


def run(argv: list[str]) -> int:
    """Write or print the card."""
    p = parser("card", "A model card (Markdown, with the Hub's metadata) for an erasure or an erased model.", EXAMPLES)
    p.add_argument("path", type=Path, help="erasure file or erased checkpoint")
    p.add_argument("--base-model", help="Hub id of what it was made from")
    p.add_argument("--license", help="licence of the base model, as the Hub names it (such as creativeml-openrail-m)")
    p.add_argument("--results", type=Path, help="folder of an `eval run` with these numbers")
    p.add_argument("--out", type=Path, help="file to write (default: the screen)")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    args = p.parse_args(argv)
    from erase_sd.checkpoints import Checkpoint
    from erase_sd.erasure import Erasure
    from erase_sd.files import atomic_path

    own = Checkpoint.erasure_file(args.path)
    erasure = Erasure.load(own if own.is_file() else args.path)
    results: dict[str, Any] | None = None
    if args.results:
        from erase_sd.cli.eval import results_of

        results = results_of(args.results)
    picture = (args.path / "before_after.png").is_file() if args.path.is_dir() else False
    text = "\n".join(card(erasure, args.path.name, args.base_model, args.license, results, picture=picture)) + "\n"
    if args.out is None:
        print(text, end="")
        return 0
    with atomic_path(args.out, force=args.force) as draft:
        draft.write_text(text, encoding="utf-8")
    print(f"wrote {args.out}")
    return 0


def card(
    erasure: Any, name: str, base: str | None, license_: str | None, results: dict[str, Any] | None, *, picture: bool
) -> list[str]:
    """The card's lines; everything in it is read from the erasure and the results."""
    from erase_sd.cli.erase import certificate_lines

    concepts = ", ".join(erasure.names)
    lines = ["---", "library_name: diffusers", "tags: [text-to-image, concept-erasure, erase-sd]"]
    lines += [f"base_model: {json.dumps(base)}"] if base else []
    lines += [f"license: {json.dumps(license_)}"] if license_ else []
    lines += ["---", "", f"# {name}: without {concepts}", ""]
    lines += [
        f"{base or 'A text-to-image model'} from which {concepts} has been erased by closed-form edits of the tensors "
        "that read the text. Nothing was trained; every other tensor is the base model's.",
        "",
    ]
    if picture:
        lines += ["![the same prompts and seeds before and after](before_after.png)", ""]
    lines += ["## What was erased", ""]
    for part in erasure.parts:
        prompts = ", ".join(json.dumps(p, ensure_ascii=False) for p in part.forget[:20])
        more = f" and {len(part.forget) - 20} more" if len(part.forget) > 20 else ""
        options = ", ".join(f"{k} = {v}" for k, v in part.options.items())
        lines += [f"### {part.name}", "", f"Forget prompts: {prompts}{more}.", ""]
        if part.retain:
            kept = ", ".join(json.dumps(p, ensure_ascii=False) for p in part.retain[:20])
            lines += [f"Retain prompts: {kept}{' and more' if len(part.retain) > 20 else ''}.", ""]
        lines += [f"Method {part.method} ({options}), strength {part.strength:g}.", ""]
        if part.certificate:
            lines += [*(f"- {line}" for line in certificate_lines(part.certificate)), ""]
    if results:
        from erase_sd.eval.report import table

        lines += ["## Evaluation", "", *table([results]), ""]
    lines += [
        "## Checking and undoing",
        "",
        f"`erase-concept verify {name} --model BASE` recomputes every edited tensor from the base model and says "
        f"whether this is what it claims to be. {len(erasure.base)} tensors are edited; the erasure file holds the "
        "edit itself, so that concepts can be taken out of it again (`erase-concept remove`).",
        "",
        "## Limits",
        "",
        "- The edit is in how the network reads text. Whoever feeds embeddings instead of text, fine-tunes, or adds a "
        "LoRA can bring the concept back.",
        "- Names that are far from every forget prompt may survive, and so may what no prompt names.",
        "- This is one safeguard, not a guarantee: filter outputs as well where it matters.",
    ]
    return lines
