"""`erase-concept train`: the trained rivals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from erase_sd.cli.common import (
    add_model,
    add_output,
    add_prompts,
    options_of,
    parser,
    quiet_libraries,
    report,
    run_of,
)
from erase_sd.training import METHODS, TRAINERS

EXAMPLES = """  erase-concept train --method esd-x --forget cat --option lr=1e-3 --out x
  erase-concept train --method leco --model ./sd14 --forget "van gogh" --device cuda --out x
  erase-concept train --method salun --model ./sd14 --forget church --retain "gas pump" \\
    --device cuda --bf16 --out no-church
  erase-concept train --method fmn --model ./sd14 --forget "jane roe" --pictures ./jane --out x
  accelerate launch -m erase_sd.cli.main train --method esd-u --model ./sd14 --forget nudity \
    --device cuda --out no-nudity      several devices, each with samples of its own

The result is a plain diffusers folder with what was done in erasure.json. The same command given
again after an interruption goes on where it stopped and ends with the same bytes. Training cannot
be undone or checked as a closed-form erasure can; it is here to be compared with."""


def run(argv: list[str]) -> int:
    """Train and report."""
    methods = "\n".join(f"  {n:<7}{m.summary} ({m.source})" for n, m in METHODS.items())
    p = parser("train", f"Erase by training, as rival methods do.\n\n{methods}", EXAMPLES)
    add_model(p)
    p.add_argument("--method", required=True, choices=TRAINERS, help="how")
    add_prompts(p, retain="what is drawn and kept (salun)")
    p.add_argument(
        "--toward",
        metavar="PROMPT",
        help="what the concept becomes (salun: default the first --retain; leco: default nothing)",
    )
    p.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="pictures of the concept (fmn, salun; default: the model draws them)",
    )
    p.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="steps, lr, batch and the method's own; repeatable; `methods --trained` lists them",
    )
    p.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    p.add_argument("--bf16", action="store_true", help="predict in bfloat16; weights stay float32")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    add_output(p, "folder to write")
    args = p.parse_args(argv)
    from erase_sd.prompts import clean, read_prompts

    forget = read_prompts(args.forget, what="forget")
    retain = read_prompts(args.retain, what="retain") if args.retain else []
    clean([args.toward or ""])
    quiet_libraries()
    from erase_sd.processes import Share
    from erase_sd.training.bench import Task
    from erase_sd.training.running import Plan, train_checkpoint

    task = Task(tuple(forget), tuple(retain), args.toward, args.pictures)
    plan = Plan(args.method, options_of(args), args.seed, args.bf16)
    share = Share.of(args.device)
    run_here = replace(run_of(args), device=share.device)
    done = train_checkpoint(args.model, task, plan, args.out, run_here, share)
    if done is not None:
        report(args, done)
    return 0
