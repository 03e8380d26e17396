"""`erase-concept preflight`: what an erasure would hit, before an image is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erase_sd.cli.common import (
    add_concept,
    add_model,
    method_options,
    open_model,
    parser,
    print_json,
    quiet_libraries,
)

EXAMPLES = """  erase-concept preflight --forget cat
  erase-concept preflight --forget set:weapons --method uce --plot weapons.png
  erase-concept preflight --model ./sd15 --forget nudity --max-drift 0.01 --json"""


def run(argv: list[str]) -> int:
    """Measure; write nothing but an optional plot."""
    p = parser("preflight", "What would this erasure hit? Seconds, no image, nothing written.", EXAMPLES)
    add_model(p)
    add_concept(p)
    p.add_argument("--max-drift", type=float, help="find the largest rank and strength whose retain drift stays below")
    p.add_argument("--force", action="store_true", help="replace --plot if it exists")
    p.add_argument("--plot", type=Path, help="PNG with the spectrum and the words that would be hit")
    p.add_argument("--json", action="store_true", help="as JSON")
    args = p.parse_args(argv)
    options = method_options(args)
    from erase_sd.files import check_target

    if args.plot:
        check_target(args.plot, force=args.force)
    if args.max_drift is not None and args.strength is not None:
        raise ValueError("--max-drift finds the strength itself; leave --strength out")
    if args.max_drift is not None and args.robust:
        raise ValueError("--robust goes as far as it must, --max-drift only as far as it may; choose one")
    from erase_sd.prompts import neutral_of, read_prompts

    forget = read_prompts(args.forget, what="forget")
    retain = read_prompts([*args.retain, *neutral_of(args.forget)], what="retain")
    model = open_model(args)
    quiet_libraries()
    from erase_sd.fitting import fit
    from erase_sd.methods import METHODS
    from erase_sd.preflight import Words, budget

    encoder = model.encoder()
    settings: dict[str, Any] = dict(
        retain=retain,
        method=args.method,
        toward=args.toward,
        tokens=args.tokens,
        name=args.name,
        robust=args.robust,
        weights=model.weights(kinds=METHODS[args.method].kinds),
    )
    strength = args.strength
    if args.max_drift is not None:
        chosen, strength = budget(encoder, forget, args.max_drift, options=options, **settings)
        options |= chosen
    erasure = fit(encoder, forget, strength=strength, **settings, **options)
    part = erasure.parts[0]
    hit = Words.of(encoder).hit(erasure.edit, exclude=forget)
    report = {
        "concept": part.name,
        "method": part.method,
        "options": part.options,
        "strength": part.strength,
        "certificate": part.certificate,
        "words_hit": [{"word": w, "change": round(c, 4)} for w, c in hit[:20]],
    }
    if args.plot:
        plot(report, args.plot, force=args.force)
    if args.json:
        print_json(report)
        return 0
    from erase_sd.cli.erase import certificate_lines

    settings_text = ", ".join(f"{k} = {v}" for k, v in part.options.items())
    print(f"{part.name!r} with {part.method} ({settings_text}), strength {part.strength:g}")
    for line in certificate_lines(part.certificate):
        print("  " + line)
    print("  spectrum of the forget features: " + " ".join(f"{v:.1%}" for v in part.certificate["spectrum"][:6]))
    print("  words moved most: " + ", ".join(f"{w} {c:.0%}" for w, c in hit[:12]))
    if args.plot:
        print(f"plot     {args.plot}")
    return 0


def plot(report: dict[str, Any], path: Path, *, force: bool) -> None:
    """Spectrum on the left, words hit on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from erase_sd.files import atomic_path

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    spectrum = report["certificate"]["spectrum"]
    left.bar(range(1, len(spectrum) + 1), spectrum, color="#b00020")
    left.set(xlabel="direction", ylabel="share of energy", title=f"forget features of {report['concept']!r}")
    words = report["words_hit"][::-1]
    right.barh([w["word"] for w in words], [w["change"] for w in words], color="#37474f")
    right.set(xlabel="relative change of the word's states", title="words moved most")
    figure.tight_layout()
    with atomic_path(path, force=force) as draft:
        figure.savefig(draft, format="png", dpi=120)
    plt.close(figure)
