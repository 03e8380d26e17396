"""`erase-concept verify`: is this what it says it is?"""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.common import add_model, parser, quiet_libraries, report, run_of

EXAMPLES = """  erase-concept verify cat.safetensors
  erase-concept verify cat.safetensors --model ./sd15
  erase-concept verify ./cat-free

Is this file intact, is that its base, does this checkpoint hold exactly what its erasure says? Exit
code 1 if not."""


def run(argv: list[str]) -> int:
    """Exit 0 if everything holds, 1 if not."""
    p = parser(
        "verify",
        "Check an erasure file against its base, or an erased checkpoint against both.",
        EXAMPLES,
    )
    p.add_argument("path", type=Path, help="erasure file or erased checkpoint")
    add_model(p)
    p.add_argument("--json", action="store_true", help="the checks as JSON")
    args = p.parse_args(argv)
    quiet_libraries()
    from erase_sd.operations.verifying import verify

    result = verify(args.path, args.model, run=run_of(args))
    report(args, result)
    return 0 if result.passed else 1
