"""The demo as hosting services start it: `python app.py`, with `erase-concept demo`'s options."""

import sys

from erase_sd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
