"""The command: a process of its own, which starts, serves, and leaves nothing."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.demo.conftest import Client, free_port

# A thread that computes for longer than anybody waits would keep Python from ending.
BUSY = """import threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
"""


@pytest.mark.parametrize(("sign", "before"), [(signal.SIGTERM, BUSY), (signal.SIGINT, "")])
def test_nothing_is_left_when_it_is_ended(tmp_path, sign, before):
    port = free_port()
    words = ["demo", "--port", str(port), "--queue", "3"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            before + "import sys\nfrom erase_sd.cli.main import main\nsys.exit(main())",
            *words,
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    watch = threading.Timer(240, process.kill)
    watch.start()
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "the demo is at" in line:
                break
        assert said[-1] == f"the demo is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n", said
        message = Client(port).run("preflight", ["emoji-sd", "cat", "", "rayleigh", False, ""])
        assert message["success"]
        (folder,) = tmp_path.glob(".erase-sd-*.part")
        assert folder.stat().st_mode & 0o777 == 0o700
        process.send_signal(sign)
        process.wait(60)
        assert "Traceback" not in process.stderr.read()
        assert not list(tmp_path.glob(".erase-sd-*.part"))
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_taken_port_is_told_in_one_line(capsys):
    import socket

    from erase_sd.demo.serve import Address

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="cannot listen on 127.0.0.1: Address already in use"):
            Address(port=taken.getsockname()[1]).bind()
