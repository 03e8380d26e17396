"""`erase-concept erase`: the main job."""

from __future__ import annotations

import io
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from erase_sd.cli.apply import check_room, keep_undo
from erase_sd.cli.common import add_concept, add_model, method_options, open_model, parser, print_json, quiet_libraries
from erase_sd.pipelines.loading import is_embedded, load_pipeline

EXAMPLES = """  erase-concept erase --forget cat
  erase-concept erase --forget cat --forget kitten --retain dog --out cat-free
  erase-concept erase --model ./stable-diffusion-v1-4 --forget set:nudity --out ./sd14-safe
  erase-concept erase --model sdxl.safetensors --tokenizer ./clip --forget "Mickey Mouse" --keep-undo
  erase-concept erase --forget cat --robust --out cat-free-robust
  erase-concept erase --forget set:weapons --method uce --toward "a toy" --json

The result is what the model was, a plain diffusers folder or a single file, and with it
  erasure.safetensors   the edit alone, kilobytes: `apply`, `remove`, `export` and `verify` read it
  erasure.json          the same in words
  report.md, report.json, before_after.png   what was forgotten and what it cost"""


def run(argv: list[str]) -> int:
    """Erase and report."""
    p = parser("erase", "Take a concept out of a model and write the erased checkpoint.", EXAMPLES)
    add_model(p)
    add_concept(p)
    p.add_argument(
        "--out", type=Path, help="folder or single file to write, as --model is (default: MODEL-without-CONCEPT)"
    )
    p.add_argument("--force", action="store_true", help="replace --out if it exists")
    p.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="images per subject before and after (default: 8 on emoji-sd, else none)",
    )
    p.add_argument("--steps", type=int, default=20, help="denoising steps of those images (default 20)")
    p.add_argument("--device", default="cpu", help="where text is encoded and images are made: cpu, cuda, cuda:1, mps")
    p.add_argument(
        "--keep-undo",
        action="store_true",
        help="also write OUT.undo.safetensors, for `remove`: keep it private, it holds the concept",
    )
    p.add_argument("--dry-run", action="store_true", help="solve and measure, write nothing")
    p.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    args = p.parse_args(argv)

    from erase_sd.prompts import neutral_of, read_prompts

    options = method_options(args)
    forget = read_prompts(args.forget, what="forget")
    retain = read_prompts([*args.retain, *neutral_of(args.forget)], what="retain")
    slug = "".join(c if c.isalnum() else "-" for c in (args.name or forget[0]).lower())[:40].strip("-")
    stem = Path(args.model).name.removesuffix(".safetensors").removesuffix(".ckpt")
    if args.images is not None and not 0 <= args.images <= 1000:
        raise ValueError(f"expected --images between 0 and 1000, got {args.images}")
    if args.steps < 1:
        raise ValueError(f"expected --steps of at least 1, got {args.steps}")

    from erase_sd.files import check_apart, check_target

    model = open_model(args)
    ending = "" if model.path.is_dir() else ".safetensors"
    out: Path = args.out or Path(f"{stem}-without-{slug or 'concept'}{ending}")
    if ending and out.suffix != ending:
        raise ValueError(f"{args.model} is a single file, so --out must be one: {out}.safetensors")
    if not ending and out.suffix == ".safetensors":
        raise ValueError(
            f"{args.model} is a folder, so --out is one, with its erasure file inside: {out.with_suffix('')}"
        )
    if not args.dry_run:
        check_apart(out, model.path)
        check_target(out, force=args.force)
        check_room(out, model.size())

    def say(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    quiet_libraries()
    from erase_sd.fitting import fit
    from erase_sd.methods import METHODS

    start = time.perf_counter()
    encoder = model.encoder(device=args.device)
    weights = model.weights(kinds=METHODS[args.method].kinds)
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
    width = encoder.width
    del encoder  # the largest thing in memory, and no longer needed
    changed = erasure.weights(weights, allow_other_base=True)  # its own base, just read
    solved = time.perf_counter()
    part = erasure.parts[0]
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    report: dict[str, Any] = {
        "command": shlex.join(["erase-concept", "erase", *argv]),
        "model": str(args.model),
        "out": None if args.dry_run else str(out),
        "edited": {
            "tensors": len(changed),
            "rank": erasure.rank,
            "width": width,
            "dtype": dtype,
            "lost to rounding": erasure.rounding(weights, changed),
        },
        "seconds": {"load": round(loaded - start, 2), "solve_and_edit": round(solved - loaded, 2)},
        "erasure": {k: v for k, v in erasure.describe().items() if k != "base"},
    }
    say(f"erased {part.name!r} from {len(changed)} matrices, rank {erasure.rank}, "
        f"{solved - loaded:.2f} s ({args.method})")  # fmt: skip
    for line in certificate_lines(part.certificate):
        say("  " + line)
    say(f"  casting to {dtype} loses {report['edited']['lost to rounding']:.2%} of the edit")
    images = args.images if args.images is not None else (8 if is_embedded(model.path) else 0)
    sheet = None
    if images and not args.dry_run:
        scores, sheet = _look(model, args, erasure, forget, images)
        report["evaluation"] = scores
        for line in score_lines(scores):
            say("  " + line)
    if not args.dry_run:
        files = {
            "report.json": json.dumps(report, indent=2, ensure_ascii=False).encode(),
            "report.md": markdown(report).encode(),
        }
        if sheet is not None:
            picture = io.BytesIO()
            sheet.save(picture, format="PNG")
            files["before_after.png"] = picture.getvalue()
        model.write(out, changed, erasure, force=args.force, files=files)
        own = model.erasure_file(out)
        say(f"model    {out}")
        say(f"erasure  {own} ({own.stat().st_size / 1000:.0f} kB)")
        if args.keep_undo:
            say(f"undo     {keep_undo(out, weights, force=args.force)} (keep it private: it holds the concept)")
        beside = out if out.is_dir() else out.with_suffix("")
        join = "/" if out.is_dir() else "."
        if sheet is not None:
            say(f"picture  {beside}{join}before_after.png")
        say(f"report   {beside}{join}report.md")
    if args.json:
        print_json(report)
    return 0


def _look(model: Any, args: Any, erasure: Any, forget: list[str], images: int) -> tuple[dict[str, Any], Any]:
    from erase_sd.eval.before_after import compare, subjects_for
    from erase_sd.pipelines.live import apply

    pipe = load_pipeline(model, variant=args.variant, device=args.device)
    embedded = is_embedded(model.path)
    return compare(
        pipe,
        subjects_for(forget),
        lambda: apply(pipe, erasure, allow_other_base=True),
        images=images,
        counted=embedded,
        guidance=3.0 if embedded else 7.5,
        steps=args.steps,
        title=f"without {erasure.parts[0].name}: {args.method}",
    )


def certificate_lines(certificate: dict[str, Any]) -> list[str]:
    """A certificate for people."""
    lines = [
        f"of the forget prompts' states {certificate['forget_residual']:.1%} is left or, past strength 1, reversed",
        f"retained text moves {certificate['retain_drift']:.2%}, the empty prompt {certificate['null_change']:.2%}, "
        f"largest gain {certificate['norm']:.2f}",
    ]
    if "revivable" in certificate:
        share = f"{certificate['revivable']:.0%}"
        lines.append(
            f"a hostile embedding could bring back {share}, by linear estimate; real attacks may bring back more"
        )
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
