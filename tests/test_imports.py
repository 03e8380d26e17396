"""What an import costs: the light paths must not pull in the heavy libraries."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "gradio", "matplotlib")


def loaded(code):
    script = f"{code}\nimport sys; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import erase_sd; dir(erase_sd)", set()),
        ("from erase_sd.cli.main import main; main(['--help'])", set()),
        ("from erase_sd.cli.main import main\nmain(['erase', '--help'])", set()),
        ("from erase_sd.cli.main import main\nmain(['demo', '--help'])", set()),
        ("from erase_sd.cli.main import main\nmain(['train', '--help'])", set()),
        (
            "import erase_sd.algebra.moments, erase_sd.algebra.edit, "
            "erase_sd.algebra.methods.rayleigh",
            {"torch"},
        ),
        (
            "import erase_sd.artifact.erasure, erase_sd.models.checkpoint, "
            "erase_sd.artifact.lora, erase_sd.algebra.certificate",
            {"torch"},
        ),
    ],
)
def test_light_paths_stay_light(code, allowed):
    assert loaded(code) <= allowed


def test_this_test_can_fail():
    assert loaded("import torch") == {"torch"}


def test_public_names_exist():
    import erase_sd

    for name in erase_sd.__all__:
        assert getattr(erase_sd, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        erase_sd.nothing  # noqa: B018
    assert callable(erase_sd.erase) and callable(erase_sd.apply)


@pytest.mark.skipif(sys.platform != "linux", reason="it is GNU's OpenMP that tells what it took")
@pytest.mark.parametrize(
    "given, taken", [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")]
)
def test_threads_that_wait_leave_the_core_to_others(given, taken):
    code = "from erase_sd.cli.main import main; main(['--version']); import torch"
    rest = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=rest | {"OMP_DISPLAY_ENV": "true"} | given,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"OMP_WAIT_POLICY = '{taken}'" in told
