"""The demo as hosting services start it: `python app.py`, with the options of `erase-concept demo`."""

import sys

from erase_sd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
