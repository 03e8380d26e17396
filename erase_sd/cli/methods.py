"""`erase-concept methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict

from erase_sd.cli.common import parser, print_json
from erase_sd.methods import DEFAULT, METHODS

TOKEN_RULES = "all-but-bos, words, words+eos, last-subject, all"


def run(argv: list[str]) -> int:
    """List the methods."""
    p = parser("methods", "List the erasure methods.", "  erase-concept methods\n  erase-concept methods --json")
    p.add_argument("--json", action="store_true", help="as JSON")
    args = p.parse_args(argv)
    if args.json:
        print_json({name: asdict(m) for name, m in METHODS.items()})
        return 0
    for name, m in METHODS.items():
        print(f"{name}{'  (default)' if name == DEFAULT else ''}\n    {m.summary}")
        options = ", ".join(f"{k} = {v}" for k, v in m.options.items())
        target = f"; moves toward {m.anchor or 'the empty prompt'!r}" if m.anchor is not None else ""
        print(f"    options: {options}; tokens {m.tokens}; retains {m.retain}{target}")
        print(f"    source:  {m.source}\n")
    print(f"token rules (--tokens): {TOKEN_RULES}")
    return 0
