"""CIFAR-10 from its archive: what is read, and what a pickle may not ask for."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest

from lab.data_cifar10 import ArraysOnly, fetched, images, main


def archive(path):
    rng = np.random.default_rng(0)
    parts = {"batches.meta": {b"label_names": [b"airplane", b"cat"]}}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        parts[name] = {
            b"data": rng.integers(0, 256, (4, 3072)).astype(np.uint8),
            b"labels": [0, 1, 1, 0],
            b"filenames": [
                b"jet_s_000001.png",
                b"tabby_cat_s_000002.png",
                b"tomcat_s_000003.png",
                b"jet_s_1.png",
            ],
        }
    with tarfile.open(path, "w:gz") as tar:
        for name, value in parts.items():
            data = pickle.dumps(value, protocol=4)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path, parts


def test_images_labels_and_nouns(tmp_path):
    path, parts = archive(tmp_path / "c.tar.gz")
    made = images(path)
    assert made["train_images"].shape == (20, 32, 32, 3) and made["test_images"].shape == (
        4,
        32,
        32,
        3,
    )
    first = parts["data_batch_1"][b"data"][0].reshape(3, 32, 32)
    assert np.array_equal(made["train_images"][0], first.transpose(1, 2, 0))
    assert made["train_labels"].tolist() == [0] * 10 + [1] * 10  # the classes one after another
    assert set(made["train_nouns"]) == {"jet", "tabby cat", "tomcat"} and made[
        "classes"
    ].tolist() == ["airplane", "cat"]


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    with pytest.raises(ValueError, match="expected arrays alone"):
        ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()


def test_another_file_of_that_name_is_refused(tmp_path):
    (tmp_path / "x.th").write_bytes(b"data")
    right = hashlib.sha256(b"data").hexdigest()
    assert fetched("https://nowhere.invalid/x.th", right[:8], tmp_path) == tmp_path / "x.th"
    with pytest.raises(ValueError, match="expected SHA-256 00000000"):
        fetched("https://nowhere.invalid/x.th", "00000000", tmp_path)


def test_all_of_it(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file

    from erase_sd.vision import load_data
    from lab import data_cifar10

    path, _ = archive(tmp_path / "raw.tar.gz")
    torch.save({"state_dict": {"module.a": torch.ones(2)}}, tmp_path / "net.th")
    monkeypatch.setattr(
        data_cifar10,
        "fetched",
        lambda url, sha, raw: tmp_path / "net.th" if "th" in url[-3:] else path,
    )
    assert main(["--out", str(tmp_path / "out")]) == 0
    data = load_data(str(tmp_path / "out" / "cifar10.npz"))
    assert data.classes == ("airplane", "cat") and data.train_fine[0] == "jet"
    assert torch.equal(
        load_file(tmp_path / "out" / "cifar10_resnet20.safetensors")["a"], torch.ones(2)
    )
