import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# What is run every time is the same every time; `make search` looks for what nobody has seen.
_ANY = settings(deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("known", _ANY, derandomize=True, max_examples=25)
settings.register_profile("search", _ANY, max_examples=2000)
settings.load_profile("known")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """One cache folder for all processes of a test run, none of the user's."""
    root = tmp_path_factory.getbasetemp().parent if os.environ.get("PYTEST_XDIST_WORKER") else None
    folder = (root or tmp_path_factory.getbasetemp()) / "erase-sd-cache"
    os.environ["ERASE_SD_CACHE"] = str(folder)


@pytest.fixture(scope="session")
def embedded():
    from erase_sd.emoji.models import EMOJI_SD

    return EMOJI_SD


@pytest.fixture(scope="session")
def encoder(embedded):
    from erase_sd.text.encoder import TextEncoder

    return TextEncoder.from_folder(embedded)


@pytest.fixture(scope="session")
def folder(embedded):
    from erase_sd.models.checkpoint import DiffusersFolder

    return DiffusersFolder.open(embedded)


@pytest.fixture(scope="session")
def weights(folder):
    return folder.weights()


@pytest.fixture(scope="session")
def cat(encoder, weights):
    from erase_sd.fit.solve import fit

    return fit(encoder, ["cat", "kitten"], name="cat", weights=weights)


@pytest.fixture(scope="session")
def dog(encoder, weights):
    from erase_sd.fit.solve import fit

    return fit(encoder, ["dog", "puppy"], name="dog", weights=weights)


@pytest.fixture
def pipe(embedded):
    from erase_sd.pipelines import EraseStableDiffusionPipeline

    pipe = EraseStableDiffusionPipeline.from_pretrained(
        embedded, dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
