import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.models.files import atomic_path
from erase_sd.models.tensor_files import overwrite_tensors, read_tensors, tensor_hash, tensor_names


def test_overwrite_changes_those_tensors_and_nothing_else(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).half(), "c": torch.arange(6)}
    save_file(tensors, path, metadata={"k": "v"})
    before = path.read_bytes()
    new = torch.randn(3, 4)
    overwrite_tensors(path, {"a": new})
    after = load_file(path)
    assert torch.equal(after["a"], new)
    assert torch.equal(after["b"], tensors["b"]) and torch.equal(after["c"], tensors["c"])
    overwrite_tensors(path, {"a": tensors["a"]})
    assert path.read_bytes() == before


def test_overwrite_refuses_another_size(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(3)}, path)
    with pytest.raises(ValueError, match="expected 12 bytes, got 16"):
        overwrite_tensors(path, {"a": torch.randn(4)})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 50) + b"{}",
        struct.pack("<Q", 4) + b"\xff\xfe\x00\x01",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 66)
        + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,12]}}  ',
        b"PK\x03\x04 a pickle in a zip",
    ],
)
def test_hostile_files_are_one_error(tmp_path, data):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not an intact safetensors"):
        tensor_names(path)


def test_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="x.safetensors"):
        read_tensors(path, ["a"])


def test_hash_is_of_values_not_of_precision():
    x = torch.randn(4, 4).half()
    assert tensor_hash(x) == tensor_hash(x.float()) == tensor_hash(x.double())
    assert tensor_hash(x) != tensor_hash(x.reshape(2, 8))
    assert tensor_hash(x) != tensor_hash(x + 1)


class TestAtomicPath:
    def test_file(self, tmp_path):
        with atomic_path(tmp_path / "f") as draft:
            draft.write_text("x")
            assert not (tmp_path / "f").exists()
        assert [p.name for p in tmp_path.iterdir()] == ["f"]

    def test_folder_is_replaced_whole(self, tmp_path):
        target = tmp_path / "d"
        target.mkdir()
        (target / "old").write_text("x")
        with pytest.raises(FileExistsError, match="--force"), atomic_path(target):
            pass
        with (
            pytest.raises(FileExistsError, match="not written by this tool"),
            atomic_path(target, force=True),
        ):
            pass
        (target / "erasure.json").write_text("{}")
        with (
            pytest.raises(FileExistsError, match="name a file"),
            atomic_path(target, force=True) as draft,
        ):
            draft.write_text("a file")
        assert (target / "old").exists()
        with atomic_path(target, force=True) as draft:
            draft.mkdir()
            (draft / "new").write_text("y")
            assert (target / "old").exists()
        assert [p.name for p in target.iterdir()] == ["new"]
        assert [p.name for p in tmp_path.iterdir()] == ["d"]

    def test_failure_leaves_what_was_there(self, tmp_path):
        target = tmp_path / "d"
        target.mkdir()
        (target / "old").write_text("x")
        (target / "erasure.json").write_text("{}")
        with pytest.raises(RuntimeError), atomic_path(target, force=True) as draft:
            draft.mkdir()
            raise RuntimeError
        assert (target / "old").read_text() == "x"
        assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_no_model_here(tmp_path):
    with pytest.raises(ValueError, match="no such model"):
        DiffusersFolder.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no model_index.json"):
        DiffusersFolder.open(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="unet/config.json"):
        DiffusersFolder.open(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "Flux"}')
    with pytest.raises(ValueError, match="unsupported denoiser Flux; supported: sd"):
        DiffusersFolder.open(tmp_path)
    config = {"_class_name": "UNet2DConditionModel", "addition_embed_type": "image"}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unsupported"):
        DiffusersFolder.open(tmp_path)
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="convert it to safetensors"):
        DiffusersFolder.open(tmp_path).sites()


def test_copy_is_byte_for_byte_but_for_the_edit(folder, weights, tmp_path):
    name, weight = next(iter(weights.items()))
    (weights_file,) = folder.denoiser_files
    folder.write(tmp_path / "copy", {name: weight * 0.5}, {"note.json": b"1"})
    for source in folder.path.rglob("*"):
        if source.is_file() and source != weights_file:
            assert (
                tmp_path / "copy" / source.relative_to(folder.path)
            ).read_bytes() == source.read_bytes()
    copy = DiffusersFolder.open(tmp_path / "copy")
    new = load_file(copy.denoiser_files[0])
    for key, old in load_file(weights_file).items():
        assert torch.equal(new[key], old * 0.5 if key == name else old)
    assert (tmp_path / "copy" / "note.json").read_bytes() == b"1"
    assert not (tmp_path / "copy" / "erasure.json").exists()


def test_files_are_readable_by_others(cat, tmp_path):
    path = cat.save(tmp_path / "cat.safetensors")
    assert os.stat(path).st_mode & 0o044 == 0o044


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path):
    """Two writers of one name: the second is told, and the first's result stays."""
    from erase_sd.models.files import atomic_path

    with pytest.raises(FileExistsError, match="another process"):
        with atomic_path(tmp_path / "x") as draft:
            draft.mkdir()
            (draft / "a").write_text("second")
            (tmp_path / "x").mkdir()
            (tmp_path / "x" / "a").write_text("first")
    assert (tmp_path / "x" / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("swap", [True, False])
def test_replacing_a_folder_with_and_without_the_system_call(tmp_path, monkeypatch, swap):
    import erase_sd.models.files as files
    import erase_sd.models.placing as placing

    if not swap:
        monkeypatch.setattr(placing, "_rename", lambda a, b, how: False)
    for text in ("old", "new"):
        with files.atomic_path(tmp_path / "x", force=True) as draft:
            draft.mkdir()
            (draft / files.PROVENANCE).write_text(text)
    assert (tmp_path / "x" / files.PROVENANCE).read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_output_neither_holds_nor_lies_in_what_is_read(tmp_path):
    from erase_sd.models.files import check_apart

    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    for out in (base, base.parent, base / "x.safetensors"):
        with pytest.raises(ValueError, match="overlaps"):
            check_apart(out, None, base)
    check_apart(base.parent / "base2", base)
