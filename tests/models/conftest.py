"""Small models of every kind, as a folder and as a single file."""

import pytest

from erase_sd.fit.solve import Settings, fit
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.models.opening import open_checkpoint
from erase_sd.text.encoder import TextEncoder
from lab.shapes import KINDS, TOKENIZER, write_folder, write_single


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    found = {}
    for kind in KINDS:
        folder = write_folder(root / f"{kind}-folder", kind, small=True, seed=1)
        found[kind] = folder, write_single(root / f"{kind}.safetensors", kind, small=True, seed=1)
    return found


def single(path):
    return open_checkpoint(path, tokenizer=str(TOKENIZER))


@pytest.fixture(scope="session")
def sdxl(models):
    model = DiffusersFolder.open(models["sdxl"][0])
    encoder = TextEncoder.from_checkpoint(model)
    weights = model.weights()
    return (
        model,
        encoder,
        weights,
        fit(encoder, ["cat"], weights=weights, settings=Settings.of(method="rayleigh", rank=1)),
    )
