"""`erase-concept demo`: the page in the browser."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from erase_sd.cli.common import parser, quiet_libraries
from erase_sd.models.embedded import EMBEDDED
from erase_sd.models.leftovers import sweep
from erase_sd.models.staging import Staging

EXAMPLES = """  erase-concept demo
  erase-concept demo --model ./sd15 --device cuda --reports ./results
  ERASE_SD_AUTH=ann:secret erase-concept demo --host 0.0.0.0 --allowed-host demo.example --auth

The page loads nothing from elsewhere. Visitors see their own work alone; files they make lie in a
temporary folder of this process and are deleted with it."""


def run(argv: list[str]) -> int:
    """Serve until interrupted."""
    args = _parse(argv)
    if args.queue < 1:
        raise ValueError(f"expected --queue of at least 1, got {args.queue}")
    for option in ("job_seconds", "job_memory"):
        if not 0 < getattr(args, option) < float("inf"):
            name = option.replace("_", "-")
            raise ValueError(f"expected --{name} above 0, got {getattr(args, option):g}")
    if args.reports and not args.reports.is_dir():
        raise ValueError(f"no such folder: {args.reports}")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs Gradio: pip install 'gradio>=6.31'")
    from erase_sd.demo.password import Password

    password = Password.from_environment() if args.auth else None
    quiet_libraries()
    for wish in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(wish, _end)
    place = Path(tempfile.gettempdir())
    sweep(place)  # what a killed one left
    # Readable by this user alone, and deleted with what visitors left in it.
    with contextlib.closing(Staging(place)) as staging:
        folder = str(staging.path)
        # Before Gradio is imported, which looks here.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from erase_sd.demo.limits import Limits
        from erase_sd.demo.serve import Address, serve
        from erase_sd.demo.server import Server

        address = Address(args.host, args.port, tuple(args.allowed_host), password)
        limits = Limits(
            waiting=args.queue,
            job_seconds=args.job_seconds,
            job_bytes=int(args.job_memory * 1e9),
        )
        if password is None and address.public:
            told = "open to everybody who reaches it; --auth asks for a password"
            print(f"erase-concept demo: {told}", file=sys.stderr)
        models = tuple(args.model or [EMBEDDED])
        server = Server(models, Path(folder), args.any_model, args.device, args.reports, limits)
        print("loading the model ...", file=sys.stderr, flush=True)
        server.model(models[0]).warm()
        serve(server, address)
    return 0


def _end(*_: object) -> NoReturn:
    """A service manager's request to stop: as Ctrl-C, but no failure."""
    raise SystemExit(0)


def _parse(argv: list[str]) -> argparse.Namespace:
    p = parser(
        "demo",
        "Erase concepts in the browser: pre-flight, before and after, files to take home.",
        EXAMPLES,
    )
    add = p.add_argument
    add("--model", action="append", help=f"model to offer; repeatable (default: {EMBEDDED})")
    add(
        "--any-model",
        action="store_true",
        help="let visitors name any folder of this machine or Hub id",
    )
    add("--device", default="cpu", help="cpu, cuda, mps")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add("--port", type=int, help="default: the first free one from 7860")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name or address in visitors' address bars, without port; repeatable "
        "(default: this machine's names for itself, and --host)",
    )
    add(
        "--auth",
        action="store_true",
        help="ask for the user and password in ERASE_SD_AUTH=user:password",
    )
    add("--reports", type=Path, metavar="FOLDER", help="evaluation pages to show")
    add("--queue", type=int, default=64, help="jobs that may wait (default: 64)")
    add("--job-seconds", type=float, default=600, help="time a job may compute (default: 600)")
    add("--job-memory", type=float, default=8, help="memory a job may take, GB (default: 8)")
    return p.parse_args(argv)
