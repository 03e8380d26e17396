"""Model folders that would run code, or hand out what is not theirs."""

import os
import shutil

import pytest

from erase_sd.cli.main import main
from erase_sd.models.checkpoint import DiffusersFolder


@pytest.fixture
def base(embedded, tmp_path):
    shutil.copytree(embedded, tmp_path / "base")
    return tmp_path / "base"


def test_a_link_out_of_the_folder_is_refused(base, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (base / "vae" / "notes.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="outside the model's folder"):
        DiffusersFolder.open(base)


def test_links_within_the_folder_and_into_the_hubs_cache_are_its_own(base, tmp_path):
    cache = tmp_path / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    base.rename(cache / "snapshots" / "c")
    base = cache / "snapshots" / "c"
    config = base / "vae" / "config.json"
    config.rename(cache / "blobs" / "x")
    config.symlink_to("../../../blobs/x")
    (base / "same.json").symlink_to("model_index.json")
    DiffusersFolder.open(base)


def test_a_pipe_is_no_part_of_a_model(base):
    os.mkfifo(base / "vae" / "pipe")
    with pytest.raises(ValueError, match="a pipe or a device"):
        DiffusersFolder.open(base)


@pytest.mark.parametrize("component", ["vae", "text_encoder", "unet"])
def test_weights_that_are_a_pickle_alone_are_refused(base, component):
    for file in (base / component).glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(ValueError, match="a pickle|safetensors only"):
        DiffusersFolder.open(base)


def test_a_pickle_beside_safetensors_is_never_copied(base, tmp_path, capsys):
    (base / "text_encoder" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    (base / "scheduler" / "state.pkl").write_bytes(b"x")
    (base / "scheduler" / "extra.safetensors").write_bytes(b"x")
    out = tmp_path / "out"
    argv = ["erase", "--model", str(base), "--forget", "cat", "--images", "0", "--out", str(out)]
    assert main(argv) == 0, capsys.readouterr().err
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pkl")]
