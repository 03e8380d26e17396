"""`erase-concept preflight`: what an erasure would hit, before an image is made."""

from __future__ import annotations

from pathlib import Path

from erase_sd.cli.common import (
    add_concept,
    add_model,
    parser,
    prompts_of,
    quiet_libraries,
    report,
    run_of,
    settings_of,
)

EXAMPLES = """  erase-concept preflight --forget cat
  erase-concept preflight --forget set:weapons --method uce --plot weapons.png
  erase-concept preflight --model ./sd15 --forget nudity --max-drift 0.01 --json"""


def run(argv: list[str]) -> int:
    """Measure; write nothing but an optional plot."""
    p = parser(
        "preflight", "What would this erasure hit? Seconds, no image, nothing written.", EXAMPLES
    )
    add_model(p)
    add_concept(p)
    p.add_argument(
        "--max-drift",
        type=float,
        help="find the largest rank and strength whose retain drift stays below",
    )
    p.add_argument(
        "--plot", type=Path, help="PNG with the spectrum and the words that would be hit"
    )
    p.add_argument("--force", action="store_true", help="replace --plot if it exists")
    p.add_argument("--json", action="store_true", help="as JSON")
    args = p.parse_args(argv)
    settings = settings_of(args)
    forget, retain = prompts_of(args)
    from erase_sd.models.files import check_apart, check_target

    if args.plot:
        check_target(args.plot, force=args.force)
        check_apart(args.plot, Path(args.model))
    quiet_libraries()
    from erase_sd.operations.looking import preflight

    result = preflight(
        args.model,
        forget,
        retain=retain,
        name=args.name,
        settings=settings,
        max_drift=args.max_drift,
        run=run_of(args),
    )
    if args.plot:
        result.plot(args.plot, force=args.force)
    report(args, result)
    if args.plot and not args.json:
        print(f"plot     {args.plot}")
    return 0
