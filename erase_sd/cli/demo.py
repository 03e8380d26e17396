"""`erase-concept demo`: the page in the browser."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from erase_sd.cli.common import EMBEDDED, parser, quiet_libraries

EXAMPLES = """  erase-concept demo
  erase-concept demo --model ./sd15 --device cuda --reports ./results
  ERASE_SD_AUTH=ann:secret erase-concept demo --host 0.0.0.0 --auth --queue 32

The page loads nothing from elsewhere. Visitors see their own work alone; files they make lie in a temporary folder
of this process and are deleted with it."""


def run(argv: list[str]) -> int:
    """Serve until interrupted."""
    p = parser("demo", "Erase concepts in the browser: pre-flight, before and after, files to take home.", EXAMPLES)
    p.add_argument(
        "--model", action="append", metavar="MODEL", help=f"model to offer; repeatable (default: {EMBEDDED})"
    )
    p.add_argument("--any-model", action="store_true", help="let visitors name any folder of this machine or Hub id")
    p.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    p.add_argument("--port", type=int, help="default: the first free one from 7860")
    p.add_argument("--auth", action="store_true", help="ask for the user and password in ERASE_SD_AUTH=user:password")
    p.add_argument("--share", action="store_true", help="also make a public link through Gradio's servers")
    p.add_argument(
        "--reports", type=Path, metavar="FOLDER", help="evaluation pages to show (`eval report` writes them)"
    )
    p.add_argument("--queue", type=int, default=64, help="requests that may wait (default 64)")
    args = p.parse_args(argv)
    if args.queue < 1:
        raise ValueError(f"expected --queue of at least 1, got {args.queue}")
    if args.reports and not args.reports.is_dir():
        raise ValueError(f"no such folder: {args.reports}")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs Gradio: pip install 'gradio>=6.31'")
    from erase_sd.demo.serve import credentials, few_arenas, serve

    auth = credentials() if args.auth else None
    if auth is None and (args.share or args.host not in ("127.0.0.1", "localhost", "::1")):
        print("erase-concept demo: open to everybody who reaches it; --auth asks for a password", file=sys.stderr)
    signal.signal(signal.SIGTERM, _end)
    few_arenas()
    quiet_libraries()
    folder = Path(tempfile.mkdtemp(prefix="erase-sd-demo-"))  # readable by this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Before Gradio is imported, which looks here: uploads and results lie in our own folder.
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from erase_sd.demo.house import House

    house = House(tuple(args.model or [EMBEDDED]), folder, args.any_model, args.device, args.reports)
    print("loading the model ...", file=sys.stderr, flush=True)
    house.studio(house.models[0]).warm()
    serve(house, host=args.host, port=args.port, auth=auth, share=args.share, queue=args.queue)
    return 0


def _end(*_: Any) -> NoReturn:
    """A service manager's request to stop: as Ctrl-C, but no failure."""
    raise SystemExit(0)
