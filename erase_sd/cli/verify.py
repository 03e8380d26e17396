"""`erase-concept verify`: is this what it says it is?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from erase_sd.cli.common import add_model, open_model, parser, print_json, quiet_libraries

EXAMPLES = """  erase-concept verify cat.safetensors                   against the embedded model
  erase-concept verify cat.safetensors --model ./sd15    is this its base?
  erase-concept verify ./cat-free                        does this checkpoint carry its erasure, intact?"""


def run(argv: list[str]) -> int:
    """Exit 0 if everything holds, 1 if not."""
    p = parser("verify", "Check an erasure file against its base, or an erased checkpoint against both.", EXAMPLES)
    p.add_argument("path", type=Path, help="erasure file or erased checkpoint")
    add_model(p)
    p.add_argument("--json", action="store_true", help="the checks as JSON")
    args = p.parse_args(argv)
    from erase_sd.checkpoints import Checkpoint, DiffusersFolder, open_checkpoint
    from erase_sd.erasure import Erasure, WrongBase
    from erase_sd.files import tensor_names
    from erase_sd.ldm import EMA

    quiet_libraries()
    own = Checkpoint.erasure_file(args.path)
    erased = None
    if args.path.is_dir() or own.is_file():
        erased = open_checkpoint(args.path, variant=args.variant)
        if not own.is_file():
            raise ValueError(f"{args.path} carries no {own.name}: it was not erased by this tool")
    erasure = Erasure.load(own if erased else args.path)
    base = open_model(args)
    weights = base.weights(kinds=erasure.kinds)
    checks: dict[str, Any] = {"concepts": list(erasure.names)}
    try:
        erasure.check_base(weights)
        checks["base weights"] = True
    except WrongBase as error:
        checks["base weights"], checks["why"] = False, str(error)
    encoder = base.encoder()
    checks["text encoder"] = encoder.fingerprint == erasure.text_encoder
    if checks["text encoder"]:
        checks["forget prompts fade"] = _fades(erasure, encoder)
    if erased:
        checks["erased weights"] = checks["base weights"] and _matches(erased, erasure, weights)
        if isinstance(erased, DiffusersFolder):
            checks["no other weights"] = not _strays(erased)
            checks["erasure.json"] = _told(args.path, erasure)
        else:
            checks["no other weights"] = not any(n.startswith(EMA) for n in tensor_names(args.path))
    passed = all(v for v in checks.values() if isinstance(v, bool))
    if args.json:
        print_json(checks | {"passed": passed})
    else:
        for name, value in checks.items():
            shown = {True: "ok", False: "FAILED"}[value] if isinstance(value, bool) else value
            print(f"{name:<22}{', '.join(shown) if isinstance(shown, list) else shown}")
    return 0 if passed else 1


def _matches(checkpoint: Any, erasure: Any, weights: Any) -> bool:
    """Whether the checkpoint's weights are the base's, edited.

    To a few units in the last place, since another machine may sum in another order.
    """
    import torch

    erased = checkpoint.weights(kinds=erasure.kinds)
    for name, expected in erasure.weights(weights).items():
        if name not in erased or erased[name].shape != expected.shape:
            return False
        room = 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        if not bool(((erased[name].double() - expected.double()).abs() <= room).all()):
            return False
    return True


def _strays(folder: Any) -> list[Path]:
    """Other weight files beside the denoiser's, which may still hold the concept."""
    from erase_sd.checkpoints import ERASURE, WEIGHTS

    own = {*folder.denoiser_files, folder.path / ERASURE}
    places = (next(iter(folder.denoiser_files)).parent, folder.path)
    return [p for place in places for p in place.iterdir() if p not in own and p.name.endswith(WEIGHTS)]


def _told(folder: Path, erasure: Any) -> bool:
    """Whether `erasure.json` says what the erasure file says, whichever version wrote it."""
    try:
        about = json.loads((folder / "erasure.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    mine = json.loads(json.dumps(erasure.describe()))
    return {k: v for k, v in about.items() if k != "tool"} == {k: v for k, v in mine.items() if k != "tool"}


def _fades(erasure: Any, encoder: Any) -> bool:
    """Recompute each concept's forget residual and compare it with the stored certificate."""
    from erase_sd.certify import energy_share
    from erase_sd.fitting import in_contexts

    for part in erasure.parts:
        stored = part.certificate.get("forget_residual")
        if stored is None:
            continue
        moment = encoder.moment(in_contexts(part.forget, part.contexts), part.tokens)
        now = energy_share(moment.gram, part.edit.scaled(part.strength).matrix)
        if abs(now - stored) > 1e-3:
            return False
    return True
