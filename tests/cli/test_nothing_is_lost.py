"""What stands already is not lost, and every failure is one line."""

import shutil

import pytest

from tests.cli.conftest import FAST, call, one_line


class TestNothingIsLost:
    """Outputs that must not replace what this tool did not write."""

    def test_a_foreign_folder_is_never_replaced(self, capsys, tmp_path):
        mine = tmp_path / "photos"
        mine.mkdir()
        (mine / "holiday.jpg").write_text("x")
        for argv in (
            ["erase", "--forget", "cat", "--out", mine, "--force", *FAST],
            ["generate", "--prompt", "a cat", "--out", mine, "--force"],
            ["preflight", "--forget", "cat", "--plot", mine, "--force"],
            ["preflight", "--forget", "cat", "--plot", mine],
        ):
            code, _, err = call(capsys, *argv)
            assert code == 2, argv
            one_line(err)
            assert (mine / "holiday.jpg").read_text() == "x"

    def test_the_base_is_never_the_output(self, capsys, tmp_path, embedded):
        base = tmp_path / "models" / "base"
        shutil.copytree(embedded, base)
        (base / "erasure.json").write_text("{}")  # even a folder that looks like ours
        before = {p: p.read_bytes() for p in base.rglob("*") if p.is_file()}
        for out in (base, base.parent, base / "inside"):
            code, _, err = call(
                capsys, "erase", "--model", base, "--forget", "cat", "--out", out, "--force", *FAST
            )
            assert code == 2 and "overlaps" in one_line(err)
        assert before == {p: p.read_bytes() for p in base.rglob("*") if p.is_file()}

    def test_no_other_copy_of_the_weights_travels_along(self, capsys, tmp_path, embedded):
        base = tmp_path / "base"
        shutil.copytree(embedded, base)
        for stray in (
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "v1-4.ckpt",
        ):
            (base / stray).write_bytes(b"un-erased")
        out = tmp_path / "out"
        assert (
            call(capsys, "erase", "--model", base, "--forget", "cat", "--out", out, *FAST)[0] == 0
        )
        assert not [
            p for p in out.rglob("*") if p.suffix in (".bin", ".ckpt") or ".fp16." in p.name
        ]
        assert (out / "text_encoder" / "model.safetensors").exists()
        assert call(capsys, "verify", out, "--model", base)[0] == 0
        (out / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"smuggled in later")
        assert call(capsys, "verify", out, "--model", base)[0] == 1

    def test_another_strength_still_verifies(self, capsys, tmp_path):
        one, half = tmp_path / "one", tmp_path / "half"
        assert call(capsys, "erase", "--forget", "cat", "--out", one, *FAST)[0] == 0
        assert call(capsys, "apply", one, "--scale", "0.5", "--out", half)[0] == 0
        assert call(capsys, "verify", half)[0] == 0

    def test_an_unexpected_fault_is_one_line(self, capsys, monkeypatch):
        monkeypatch.setattr("erase_sd.cli.methods.run", lambda argv: 1 / 0)
        code, _, err = call(capsys, "methods")
        assert code == 1 and "unexpected ZeroDivisionError" in one_line(err)

    def test_an_interrupt_is_one_line_and_130(self, capsys, monkeypatch):
        def interrupted(argv):
            raise KeyboardInterrupt

        monkeypatch.setattr("erase_sd.cli.methods.run", interrupted)
        code, _, err = call(capsys, "methods")
        assert code == 130 and "interrupted" in one_line(err)

    @pytest.mark.parametrize("device", ["cuda", "abacus"])
    def test_a_device_that_is_not_here(self, capsys, tmp_path, device):
        import torch

        if torch.cuda.is_available() and device == "cuda":
            device = "mps"
        argv = ["generate", "--prompt", "a cat", "--device", device, "--out", tmp_path / "g.png"]
        code, _, err = call(capsys, *argv)
        assert code == 2 and "--device" in one_line(err)
