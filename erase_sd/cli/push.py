"""`erase-concept push`: an erasure on the Hub, with its card."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.card import add_card, publication
from erase_sd.cli.common import parser, quiet_libraries

EXAMPLES = """  erase-concept push no-cat.safetensors OWNER/no-cat --base-model OWNER/NAME
  erase-concept push no-cat.safetensors OWNER/no-cat --also no-cat.kohya.safetensors --private

Afterwards every command takes OWNER/no-cat in place of a file, and so does Erasure.from_pretrained.
Log in first with the Hub's own `hf auth login`, or set HF_TOKEN. `card` shows what will be said; an
erased checkpoint is a folder like any other: `hf upload` publishes it."""


def run(argv: list[str]) -> int:
    """Publish the erasure, its card and what else is named."""
    p = parser("push", "Publish an erasure file on the Hugging Face Hub, with its card.", EXAMPLES)
    p.add_argument("erasure", type=Path, help="erasure file")
    p.add_argument("repository", help="OWNER/NAME; made if it is not there")
    add_card(p)
    p.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="another file to put beside it, such as a LoRA of it; repeatable",
    )
    p.add_argument("--private", action="store_true", help="nobody else sees a new repository")
    args = p.parse_args(argv)
    quiet_libraries()
    from erase_sd.artifact.erasure import Erasure

    if args.erasure.is_dir():
        raise ValueError(
            f"expected an erasure file, got the folder {args.erasure}: use `hf upload`"
        )
    missing = [str(path) for path in args.also if not path.is_file()]
    if missing:
        raise ValueError(f"no such file: {', '.join(missing)}")
    where = Erasure.load(args.erasure).push_to_hub(
        args.repository,
        about=publication(args, args.erasure),
        also=args.also,
        private=args.private or None,
    )
    print(f"pushed {args.erasure} to {where}")
    return 0
