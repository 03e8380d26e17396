"""`erase-concept methods`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict

from erase_sd.algebra.methods import DEFAULT, METHODS, Method
from erase_sd.cli.common import parser, print_json

EXAMPLES = """  erase-concept methods
  erase-concept methods --json
  erase-concept methods --trained"""


def run(argv: list[str]) -> int:
    """List the methods."""
    p = parser("methods", "List the erasure methods.", EXAMPLES)
    p.add_argument("--json", action="store_true", help="as JSON")
    p.add_argument("--trained", action="store_true", help="those of `train` instead")
    args = p.parse_args(argv)
    if args.trained:
        return _trained(args.json)
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


def _trained(as_json: bool) -> int:
    """The trained methods with their options."""
    from erase_sd.training import METHODS as TRAINED

    if as_json:
        told = {n: {"summary": m.summary, "source": m.source} for n, m in TRAINED.items()}
        print_json({n: told[n] | {"options": m.described()} for n, m in TRAINED.items()})
        return 0
    for name, m in TRAINED.items():
        options = ", ".join(f"{k} = {v}" for k, v in m.described().items())
        print(f"{name}\n    {m.summary}\n    options: {options}\n    source:  {m.source}\n")
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
