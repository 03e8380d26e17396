"""`erase-concept prompts`: the prompt sets."""

from __future__ import annotations

from dataclasses import asdict

from erase_sd.cli.common import parser, print_json

EXAMPLES = """  erase-concept prompts list
  erase-concept prompts show weapons
  erase-concept prompts show ./mine.yaml
  erase-concept erase --forget set:weapons"""


def run(argv: list[str]) -> int:
    """List sets, or show one."""
    p = parser("prompts", "List or show prompt sets; use them as set:NAME.", EXAMPLES)
    p.add_argument("action", choices=["list", "show"])
    p.add_argument("name", nargs="?", help="set to show: a name or a .yaml path")
    p.add_argument("--json", action="store_true", help="as JSON")
    args = p.parse_args(argv)
    from erase_sd.prompts import load_set, set_names

    if args.action == "show":
        if not args.name:
            raise ValueError(f"which set? there are {', '.join(set_names())}")
        one = load_set(args.name)
        if args.json:
            print_json(asdict(one) | {"prompts": one.prompts()})
        else:
            print("\n".join(one.prompts()))
        return 0
    sets = [load_set(n) for n in set_names()]
    if args.json:
        print_json([asdict(s) for s in sets])
    else:
        for s in sets:
            print(
                f"{s.name:<14}{len(s.concepts):>3} concepts, {len(s.prompts()):>4} prompts  "
                f"{s.description}"
            )
    return 0
