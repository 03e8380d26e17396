"""`erase`, and what the other commands make of its result."""

import json
import subprocess
import sys

from tests.cli.conftest import FAST, call, one_line


def test_erase_then_everything_else(capsys, tmp_path, embedded):
    out = tmp_path / "cat-free"
    code, text, err = call(
        capsys, "erase", "--forget", "cat", "--forget", "kitten", "--out", out, *FAST
    )
    assert code == 0, err
    assert str(out) in text
    report = json.loads((out / "report.json").read_text())
    assert report["edited"]["tensors"] == 14
    assert "# emoji-sd without cat" in (out / "report.md").read_text()

    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    code, _, err = call(capsys, "erase", "--forget", "dog", "--out", out, *FAST)
    assert code == 2 and "--force" in one_line(err)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    dog = tmp_path / "dog-free"
    assert call(capsys, "erase", "--forget", "dog", "--out", dog, "--json", *FAST)[0] == 0
    code, text, _ = call(capsys, "verify", out, "--json")
    assert code == 0 and json.loads(text)["erased weights"] is True
    both = tmp_path / "both"
    assert call(capsys, "apply", out, dog / "erasure.safetensors", "--out", both)[0] == 0
    assert call(capsys, "verify", both)[0] == 0
    assert (
        call(capsys, "remove", both, "--concept", "dog", "--out", tmp_path / "cat.safetensors")[0]
        == 0
    )
    again = tmp_path / "again"
    assert call(capsys, "apply", tmp_path / "cat.safetensors", "--out", again)[0] == 0
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (
        out / weights
    ).read_bytes()  # dog is gone without a trace
    for style in ("peft", "kohya"):
        lora = tmp_path / f"{style}.safetensors"
        assert call(capsys, "export", out, "--style", style, "--out", lora)[0] == 0
        assert lora.stat().st_size > 10_000

    # A changed weight is noticed, an erasure for another base refused.
    file = both / weights
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    file.write_bytes(data)
    code, text, _ = call(capsys, "verify", both)
    assert code == 1 and "FAILED" in text
    code, _, err = call(capsys, "apply", out, "--model", both, "--out", tmp_path / "x")
    assert code == 2 and "another base" in one_line(err) and not (tmp_path / "x").exists()


def test_dry_run_writes_nothing(capsys, tmp_path):
    assert call(capsys, "erase", "--forget", "cat", "--out", tmp_path / "o", "--dry-run")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_ten_thousand_lines_with_repetitions(capsys, tmp_path):
    many = tmp_path / "many.txt"
    many.write_text("\n".join(f"cat {i % 300}" for i in range(10_000)))
    code, _, err = call(
        capsys, "erase", "--forget", f"file:{many}", "--out", tmp_path / "o", "--dry-run"
    )
    assert code == 0, err


def test_prompt_files_in_other_encodings(capsys, tmp_path):
    good = tmp_path / "bom.txt"
    good.write_bytes("\ufeffcat\r\n\r\nkitten\r\n".encode())
    code, text, _ = call(
        capsys, "erase", "--forget", f"file:{good}", "--dry-run", "--json", "--out", tmp_path / "o"
    )
    assert code == 0 and json.loads(text)["erasure"]["concepts"][0]["forget"] == ["cat", "kitten"]
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9")
    code, _, err = call(
        capsys, "erase", "--forget", f"file:{bad}", "--dry-run", "--out", tmp_path / "o"
    )
    assert code == 2 and "cannot read" in one_line(err)


def test_a_place_where_nothing_can_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = call(capsys, "erase", "--forget", "cat", "--out", tmp_path / "file" / "o", *FAST)
    assert code in (1, 2) and "file" in one_line(err).lower()
    assert (tmp_path / "file").read_text() == "x"


def test_full_disk_leaves_nothing(tmp_path):
    """A file-size limit stands in for a full disk: the write of the U-Net's copy fails half-way."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000));"
        "from erase_sd.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "erase",
            "--forget",
            "cat",
            "--images",
            "0",
            "--out",
            str(tmp_path / "o"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_erased_folder_loads_without_erase_sd(capsys, tmp_path):
    out = tmp_path / "out"
    assert call(capsys, "erase", "--forget", "cat", "--out", out, *FAST)[0] == 0
    code = (
        "import sys; from diffusers import StableDiffusionPipeline as P;"
        f"image = P.from_pretrained({str(out)!r})('a photo of a dog', "
        "num_inference_steps=2).images[0];"
        f"image.save({str(tmp_path / 'dog.png')!r});"
        "assert not any(m.startswith('erase_sd') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dog.png").read_bytes().startswith(b"\x89PNG")
