"""The fault harness, a few trials of everything; `make faults` runs thousands."""

import os
import subprocess
import sys
from pathlib import Path


def test_faults(tmp_path):
    """Killed, disk full, hostile inputs, several writers: nothing half-written, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.faults", "--work", str(tmp_path / "w"), "--out", str(tmp_path),
         "--trials", "kills=4", "disks=2", "calls=6", "writers=1", "mixed=1", "words=30",
         "forged=30", "threads=1", "interrupts=2", "requests=40"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert ", 0 wrong." in (tmp_path / "faults.md").read_text()


def test_the_judges_of_faults_can_fail(tmp_path):
    """A mixture, something lost, something left behind, an escape, a traceback: each is seen."""
    from lab.faults.bench import judge, litter
    from lab.faults.inside import Ran

    place = tmp_path / "out"
    place.mkdir()
    new, old = {"a": b"1", "b": b"1"}, {"a": b"0", "b": b"0"}
    assert judge(place, new, {}) == "nothing"
    assert judge(place, new, old) == "OLD LOST"
    (place / "a").write_bytes(b"1")
    assert judge(place, new, old).startswith("MIXED")
    (place / "b").write_bytes(b"1")
    assert judge(place, new, old) == "new"
    good = Ran(("x",), 2, "erase-concept x: error: no\n", 0.1, 0)
    assert not good.wrong(place, {"a", "b"})
    assert good.wrong(place, {"a"}).startswith("FAILED AND LEFT")
    for code, said, seconds, told in (
        (3, "", 0.1, "EXIT"),
        (1, "Traceback", 0.1, "NOT EXPECTED"),
        (2, "", 0.1, "SAID 0 ERRORS"),
        (0, "", 99.0, "TOOK"),
        (1, "erase-concept x: error: \x1b", 0.1, "ESCAPES"),
    ):
        assert Ran(("x",), code, said, seconds, 0).wrong(place, {"a", "b"}).startswith(told)
    (place / "x.safetensors").write_bytes(b"half")
    assert Ran(("x",), 0, "", 0.1, 0).wrong(place, set()).startswith("UNSOUND")
    (place / ".erase-sd-0123456789abcdef.part").mkdir()
    assert litter(place)
    assert Ran(("x",), 0, "", 0.1, 0).wrong(place, set()) == "LEFT BEHIND"


def test_a_portion_that_dies_is_an_outcome_and_each_has_a_seed_of_its_own(tmp_path):
    import signal

    from lab.faults import __main__ as faults

    class Base:
        def intact(self):
            return True

    def dies(bench, rng, n):
        os.kill(os.getpid(), signal.SIGKILL)

    kind = faults.Kind("x", 1, 1, dies)
    ((_, outcome, n),) = faults.portion(Base(), kind, [0], 3)
    assert outcome.startswith("DIED") and n == 3
    kind = faults.Kind("x", 1, 1, lambda bench, rng, n: [("a", f"{rng.integers(9)}")] * n)
    assert faults.portion(Base(), kind, [1], 3) == faults.portion(Base(), kind, [1], 3)
