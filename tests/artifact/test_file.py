"""Erasure files: damaged, forged, newer and older ones."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.file import _digest


def forge(path, tensors, about):
    """A file whose checksum is right, as anyone can make one."""
    own = json.dumps({"about": about, "sha256": _digest(about, tensors)})
    save_file(tensors, path, metadata={"erase_sd": own})


def forge_first_format(path, tensors, about):
    """The same as version 0.1 wrote it."""
    save_file(tensors, path, metadata={"erase_sd": about, "sha256": _digest(about, tensors)})


class TestBadFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(ValueError, match="no such erasure file"):
            Erasure.load(tmp_path / "x")

    def test_every_flipped_byte_is_noticed(self, cat, tmp_path):
        whole = cat.save(tmp_path / "e.safetensors").read_bytes()
        rng = np.random.default_rng(0)
        for at in [*range(8), *rng.integers(8, len(whole), 60)]:
            broken = bytearray(whole)
            broken[at] ^= 1 << rng.integers(8)
            (tmp_path / "b").write_bytes(broken)
            with pytest.raises(ValueError):
                Erasure.load(tmp_path / "b")

    def test_truncated(self, cat, tmp_path):
        path = cat.save(tmp_path / "e.safetensors")
        for keep in (0, 7, 100, path.stat().st_size - 1):
            cut = tmp_path / f"cut{keep}"
            cut.write_bytes(path.read_bytes()[:keep])
            with pytest.raises(ValueError, match="damaged"):
                Erasure.load(cut)

    @pytest.mark.parametrize(
        "about",
        [
            "",
            "[]",
            '"x"',
            "{}",
            '{"format": "1"}',
            '{"format": 1}',
            '{"format": 1, "concepts": [{}]}',
            '{"format": 1, "concepts": 3}',
        ],
    )
    def test_hostile_metadata(self, tmp_path, about):
        path = tmp_path / "e.safetensors"
        forge(path, {"0.tokens.A": torch.zeros(3, 1)}, about)
        with pytest.raises(ValueError, match="erasure file"):
            Erasure.load(path)

    def test_newer_format(self, tmp_path):
        path = tmp_path / "e.safetensors"
        forge(path, {"0.tokens.A": torch.zeros(3, 1)}, '{"format": 99}')
        with pytest.raises(ValueError, match="upgrade"):
            Erasure.load(path)

    def test_nan_factors(self, cat, tmp_path):
        path = tmp_path / "e.safetensors"
        nan = torch.full((192, 1), float("nan"), dtype=torch.float64)
        about = json.dumps({"format": 2, **cat.describe()})
        forge(path, {"0.tokens.A": nan, "0.tokens.B": nan.clone()}, about)
        with pytest.raises(ValueError, match="no finite weight"):
            Erasure.load(path)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("contexts", ["{0.__class__}"]),
            ("contexts", ["{:0>3000000000}"]),
            ("contexts", ["no place"]),
            ("contexts", [-1]),
            ("forget", [None]),
            ("tokens", []),
            ("name", "\x1b[2J"),
            ("name", "x" * 1000),
            ("strength", float("inf")),
            ("strength", "1"),
            ("options", []),
            ("certificate", {"a": {"b": {"c": {"d": {"e": 1}}}}}),
            ("certificate", None),
            ("certificate", {str(i): 1.0 for i in range(5_000)}),
            ("options", {str(i): 1 for i in range(5_000)}),
            ("right", ["tokens", "sideways"]),
            ("right", []),
            ("left", ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"]),
            ("left", ["nowhere"]),
        ],
    )
    def test_forged_fields_are_one_clear_line(self, cat, tmp_path, field, value):
        about = json.loads(json.dumps(cat.describe()))
        about["concepts"][0][field] = value
        path = tmp_path / "e.safetensors"
        forge(path, cat._tensors(), json.dumps({"format": 2, **about}))
        with pytest.raises(ValueError, match=f"complete erasure file: {field}") as caught:
            Erasure.load(path)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("shape", [(70_000, 1), (4, 5), (3,), (100, 5000)])
    def test_forged_sizes_are_refused_from_the_header(self, cat, tmp_path, shape):
        path = tmp_path / "e.safetensors"
        forge(path, {"0.tokens.B": torch.zeros(shape)}, json.dumps({"format": 2, **cat.describe()}))
        with pytest.raises(ValueError, match="expected factors"):
            Erasure.load(path)

    def test_metadata_nested_without_end(self, tmp_path):
        path = tmp_path / "e.safetensors"
        forge_first_format(path, {"0.tokens.A": torch.zeros(3, 1)}, "[" * 100_000)
        with pytest.raises(ValueError, match="not an erasure file"):
            Erasure.load(path)

    def test_the_first_format_is_still_read(self, cat, tmp_path):
        about = json.loads(json.dumps(cat.describe()))
        about = {
            "format": 1,
            "tool": "erase-sd 0.1.0",
            **{k: v for k, v in about.items() if k != "scale"},
        }
        for concept in about["concepts"]:
            concept["streams"] = concept.pop("right")
            del concept["left"]
        edit = cat.edit
        tensors = {"0.tokens.A": edit.A / cat.concepts[0].strength, "0.tokens.B": edit.B.clone()}
        path = tmp_path / "old.safetensors"
        forge_first_format(path, tensors, json.dumps(about))
        old = Erasure.load(path)
        torch.testing.assert_close(old.edit.matrix, edit.matrix)
        assert old.base == cat.base and old.scale == 1 and not old.left
