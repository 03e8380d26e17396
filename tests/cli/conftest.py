"""Running the command in this process, and what it said."""

from erase_sd.cli.main import main

FAST = ["--images", "0"]


def call(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("erase-concept")]
    assert "Traceback" not in err
    return lines[-1]
