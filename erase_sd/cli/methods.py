"""`erase-concept methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict

from erase_sd.algebra.methods import DEFAULT, METHODS, Method
from erase_sd.cli.common import parser, print_json

EXAMPLES = """  erase-concept methods
  erase-concept methods --json"""


def run(argv: list[str]) -> int:
    """List the methods."""
    p = parser("methods", "List the erasure methods.", EXAMPLES)
    p.add_argument("--json", action="store_true", help="as JSON")
    args = p.parse_args(argv)
    from erase_sd.text.tokens import TOKEN_RULES

    if args.json:
        print_json(
            {name: asdict(m) | {"options": asdict(m.options())} for name, m in METHODS.items()}
        )
        return 0
    for method in METHODS.values():
        print("\n".join(describe(method)) + "\n")
    print("token rules (--tokens):")
    for rule, text in TOKEN_RULES.items():
        print(f"    {rule:<14}{text}")
    return 0


def describe(method: Method) -> list[str]:
    """A method in four lines."""
    options = ", ".join(
        f"{k} = {'chosen' if v is None else v}" for k, v in asdict(method.options()).items()
    )
    target = (
        f"; moves toward {method.anchor or 'the empty prompt'!r}"
        if method.anchor is not None
        else ""
    )
    return [
        f"{method.name}{'  (default)' if method.name == DEFAULT else ''}",
        f"    {method.summary}",
        f"    options: {options or 'none'}; tokens {method.tokens}; retains "
        f"{method.retain}{target}",
        f"    source:  {method.source}",
    ]
