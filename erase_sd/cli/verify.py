"""`erase-concept verify`: is this what it says it is?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from erase_sd.cli.common import add_model, model_path, parser, print_json, quiet_libraries

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
    from erase_sd.checkpoints import ERASURE, DiffusersFolder
    from erase_sd.erasure import Erasure, WrongBase
    from erase_sd.text import TextEncoder

    quiet_libraries()
    folder = args.path if args.path.is_dir() else None
    if folder and not (folder / ERASURE).is_file():
        raise ValueError(f"{folder} carries no {ERASURE}: it was not erased by this tool")
    erasure = Erasure.load(folder / ERASURE if folder else args.path)
    base = DiffusersFolder.open(model_path(args.model), variant=args.variant)
    weights = base.weights(kinds=erasure.kinds)
    checks: dict[str, Any] = {"concepts": list(erasure.names)}
    try:
        erasure.check_base(weights)
        checks["base weights"] = True
    except WrongBase as error:
        checks["base weights"], checks["why"] = False, str(error)
    encoder = TextEncoder.from_folder(base.path)
    checks["text encoder"] = encoder.fingerprint == erasure.text_encoder
    if checks["text encoder"]:
        checks["forget prompts fade"] = _fades(erasure, encoder)
    if folder and checks["base weights"]:
        import torch

        erased = DiffusersFolder.open(folder, variant=args.variant).weights(kinds=erasure.kinds)
        expected = erasure.weights(weights)
        checks["erased weights"] = all(torch.equal(erased[n], w) for n, w in expected.items())
        try:
            about = json.loads((folder / "erasure.json").read_text(encoding="utf-8"))
            checks["erasure.json"] = about == json.loads(json.dumps(erasure.describe()))
        except (OSError, json.JSONDecodeError):
            checks["erasure.json"] = False
    passed = all(v for v in checks.values() if isinstance(v, bool))
    if args.json:
        print_json(checks | {"passed": passed})
    else:
        for name, value in checks.items():
            shown = {True: "ok", False: "FAILED"}[value] if isinstance(value, bool) else value
            print(f"{name:<22}{', '.join(shown) if isinstance(shown, list) else shown}")
    return 0 if passed else 1


def _fades(erasure: Any, encoder: Any) -> bool:
    """Recompute each concept's forget residual and compare it with the stored certificate."""
    from erase_sd.certify import energy_share

    for part in erasure.parts:
        stored = part.certificate.get("forget_residual")
        if stored is None:
            continue
        moment = encoder.moment(part.forget, part.tokens)
        now = energy_share(moment.gram, part.edit.scaled(part.strength).matrix)
        if abs(now - stored) > 1e-3:
            return False
    return True
