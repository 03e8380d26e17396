"""`erase-concept erase`: the main job."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from erase_sd.cli.common import (
    add_concept,
    add_model,
    is_embedded,
    load_pipeline,
    method_options,
    model_path,
    parser,
    print_json,
    quiet_libraries,
)

EXAMPLES = """  erase-concept erase --forget cat
  erase-concept erase --forget cat --forget kitten --retain dog --out cat-free
  erase-concept erase --model ./stable-diffusion-v1-4 --forget set:nudity --out ./sd14-safe
  erase-concept erase --forget cat --robust --out cat-free-for-good
  erase-concept erase --forget set:weapons --method uce --toward "a toy" --json

The result is a plain diffusers folder, with beside its weights
  erasure.safetensors   the edit alone, kilobytes: `apply`, `remove`, `export` and `verify` read it
  erasure.json          the same in words
  report.md, report.json, before_after.png   what was forgotten and what it cost"""


def run(argv: list[str]) -> int:
    """Erase and report."""
    p = parser("erase", "Take a concept out of a model and write the erased checkpoint.", EXAMPLES)
    add_model(p)
    add_concept(p)
    p.add_argument("--out", type=Path, help="folder to write (default: NAME-without-CONCEPT)")
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument("--images", type=int, metavar="N", help="images per subject before and after (0: none; default 8)")
    p.add_argument("--steps", type=int, default=20, help="denoising steps of those images (default 20)")
    p.add_argument("--device", default="cpu", help="where images are made: cpu, cuda, cuda:1, mps")
    p.add_argument("--dry-run", action="store_true", help="solve and measure, write nothing")
    p.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    args = p.parse_args(argv)

    from erase_sd.prompts import neutral_of, read_prompts

    options = method_options(args)
    forget = read_prompts(args.forget, what="forget")
    retain = read_prompts([*args.retain, *neutral_of(args.forget)], what="retain")
    base = model_path(args.model)
    slug = "".join(c if c.isalnum() else "-" for c in (args.name or forget[0]).lower())[:40].strip("-")
    out: Path = args.out or Path(f"{base.name}-without-{slug or 'concept'}")
    if args.images is not None and not 0 <= args.images <= 1000:
        raise ValueError(f"expected --images between 0 and 1000, got {args.images}")
    if args.steps < 1:
        raise ValueError(f"expected --steps of at least 1, got {args.steps}")

    from erase_sd.checkpoints import ERASURE, DiffusersFolder, atomic_path, check_apart, check_target

    folder = DiffusersFolder.open(base, variant=args.variant)
    if not args.dry_run:
        check_apart(out, base)
        check_target(out, force=args.force)
        _check_room(out, folder.size())

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    quiet_libraries()
    from erase_sd.fitting import fit
    from erase_sd.methods import METHODS
    from erase_sd.text import TextEncoder

    start = time.perf_counter()
    encoder = TextEncoder.from_folder(base, variant=args.variant)
    weights = folder.weights(kinds=METHODS[args.method].kinds)
    loaded = time.perf_counter()
    erasure = fit(
        encoder,
        forget,
        retain=retain,
        method=args.method,
        toward=args.toward,
        tokens=args.tokens,
        strength=args.strength,
        name=args.name,
        robust=args.robust,
        weights=weights,
        **options,
    )
    changed = erasure.weights(weights, allow_other_base=True)  # its own base, just read
    solved = time.perf_counter()
    part = erasure.parts[0]
    report: dict[str, Any] = {
        "command": shlex.join(["erase-concept", "erase", *argv]),
        "model": str(args.model),
        "out": None if args.dry_run else str(out),
        "edited": {"tensors": len(changed), "rank": erasure.edit.rank, "width": encoder.width},
        "seconds": {"load": round(loaded - start, 2), "solve_and_edit": round(solved - loaded, 2)},
        "erasure": {k: v for k, v in erasure.describe().items() if k != "base"},
    }
    say(f"erased {part.name!r} from {len(changed)} matrices, rank {erasure.edit.rank}, "
        f"{solved - loaded:.2f} s ({args.method})")  # fmt: skip
    for line in certificate_lines(part.certificate):
        say("  " + line)
    images = args.images if args.images is not None else (8 if is_embedded(base) else 0)
    sheet = None
    if images and not args.dry_run:
        scores, sheet = _look(base, args, erasure, forget, images)
        report["evaluation"] = scores
        for line in score_lines(scores):
            say("  " + line)
    if not args.dry_run:
        with atomic_path(out, force=args.force) as draft:
            folder.write_copy(draft, changed, erasure.describe())
            erasure.save(draft / ERASURE)
            if sheet is not None:
                sheet.save(draft / "before_after.png")
            (draft / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
            (draft / "report.md").write_text(markdown(report), encoding="utf-8")
        say(f"model    {out}")
        say(f"erasure  {out / ERASURE} ({(out / ERASURE).stat().st_size / 1000:.0f} kB)")
        if sheet is not None:
            say(f"picture  {out / 'before_after.png'}")
        say(f"report   {out / 'report.md'}")
    if args.json:
        print_json(report)
    return 0


def _look(base: Path, args: Any, erasure: Any, forget: list[str], images: int) -> tuple[dict[str, Any], Any]:
    from erase_sd.eval.before_after import compare, subjects_for
    from erase_sd.pipelines.live import apply

    pipe = load_pipeline(base, variant=args.variant, device=args.device)
    return compare(
        pipe,
        subjects_for(forget),
        lambda: apply(pipe, erasure, allow_other_base=True),
        images=images,
        counted=is_embedded(base),
        guidance=3.0 if is_embedded(base) else 7.5,
        steps=args.steps,
        title=f"without {erasure.parts[0].name}: {args.method}",
    )


def _check_room(out: Path, size: int) -> None:
    parent = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < size:
        raise OSError(f"{parent} has {free / 1e9:.1f} GB free, the checkpoint needs {size / 1e9:.1f} GB")


def certificate_lines(certificate: dict[str, Any]) -> list[str]:
    """A certificate for people."""
    lines = [
        f"forget prompts keep {certificate['forget_residual']:.1%} of their strength",
        f"retained text moves {certificate['retain_drift']:.2%}, the empty prompt {certificate['null_change']:.2%}, "
        f"largest gain {certificate['norm']:.2f}",
    ]
    if "revivable" in certificate:
        lines.append(f"an adversarial embedding brings back {certificate['revivable']:.0%} of the concept at best")
    return lines


def score_lines(scores: dict[str, Any]) -> list[str]:
    """The judge's counts for people."""
    lines = []
    for key, verb in (("forget", "to forget"), ("retain", "to keep  ")):
        if key in scores:
            lines.append(
                f"{verb}: judge finds it in {scores[key]['before']:.0%} before, {scores[key]['after']:.0%} after"
            )
    if "forget" not in scores:
        lines.append("to forget: nothing that a detector here knows, so nothing is counted; see the picture")
    return lines


def markdown(report: dict[str, Any]) -> str:
    """`report.md`."""
    part = report["erasure"]["concepts"][0]
    lines = [
        f"# {report['model']} without {part['name']}",
        "",
        f"    {report['command']}",
        "",
        f"Method {part['method']} ({', '.join(f'{k} = {v}' for k, v in part['options'].items())}), "
        f"strength {part['strength']:g}, {report['edited']['tensors']} matrices, "
        f"rank {report['edited']['rank']}, {report['seconds']['solve_and_edit']} s.",
        "",
        *(f"- {line}" for line in certificate_lines(part["certificate"])),
        "",
    ]
    scores = report.get("evaluation")
    if scores:
        lines += ["![before and after](before_after.png)", "", *(f"- {line}" for line in score_lines(scores)), ""]
        lines += ["| prompt | | judge before | judge after | pixels changed |", "|---|---|---|---|---|"]
        for row in scores["subjects"]:
            seen = [f"{row[k]:.0%}" if k in row else "-" for k in ("before", "after")]
            kind = "forget" if row["forget"] else "keep"
            lines.append(f"| {row['subject']} | {kind} | {seen[0]} | {seen[1]} | {row['pixel_change']:.1%} |")
        lines += ["", f"{scores['images']} images each, {scores['steps']} steps, guidance {scores['guidance']:g}."]
    return "\n".join(lines) + "\n"
