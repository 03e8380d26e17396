import json
import shutil
import subprocess
import sys

import pytest

from erase_sd.cli.main import COMMANDS, main

FAST = ["--images", "0"]


def call(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("erase-concept")]
    assert "Traceback" not in err
    return lines[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_itself(command, capsys):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0 and "examples:" in out and f"erase-concept {command}" in out


def test_top_level_help_and_unknown_command(capsys):
    assert call(capsys, "--help")[0] == 0
    assert call(capsys)[0] == 2
    code, _, err = call(capsys, "errase")
    assert code == 2 and "did you mean erase" in one_line(err)
    assert call(capsys, "--version")[1].startswith("erase-sd ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--forget", ""], "forget prompts are empty"),
        (["--forget", "   "], "forget prompts are empty"),
        (["--forget", "file:/no/such/file"], "cannot read forget prompts"),
        (["--forget", "set:nothing"], "no prompt set 'nothing'"),
        (["--forget", "cat", "--retain", "cat"], "both to forget and to retain"),
        (["--forget", "cat", "--model", "/no/such/model"], "no such model"),
        (["--forget", "cat", "--model", "."], "no model_index.json"),
        (["--forget", "cat", "--rank", "900"], "rank 900 asked"),
        (["--forget", "cat", "--option", "colour=red"], "no option 'colour'"),
        (["--forget", "cat", "--option", "rank"], "NAME=VALUE"),
        (["--forget", "cat", "--option", "rank=many"], "expected a whole number"),
        (["--forget", "cat", "--toward", "dog"], "no target"),
        (["--forget", "cat", "--tokens", "few"], "token rule"),
        (["--forget", "cat", "--images", "-3"], "--images between"),
    ],
)
def test_wrong_use_is_one_line_exit_2_and_nothing_written(
    argv, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "erase", *argv, "--out", tmp_path / "out")
    assert code == 2, err
    assert message in one_line(err)
    assert list(tmp_path.iterdir()) == []


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


def test_preflight(capsys, tmp_path):
    code, text, err = call(
        capsys, "preflight", "--forget", "cat", "--json", "--plot", tmp_path / "p.png"
    )
    assert code == 0, err
    report = json.loads(text)
    assert len(report["words_hit"]) == 20 and "cat" not in [w["word"] for w in report["words_hit"]]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_words_are_measured_on_the_states_the_model_sees(encoder, cat):
    from erase_sd.algebra.certificate import change
    from erase_sd.fit.preflight import Words

    hit = dict(Words.of(encoder, 200).hit(cat.edit, exclude=["Cat"]))
    assert "cat" not in hit
    for word in list(hit)[:3] + list(hit)[-3:]:
        direct = change(cat.edit, encoder.encode([word]).rows("words+eos")).mean()
        assert abs(hit[word] - float(direct)) < 1e-4


def test_preflight_keeps_a_drift_budget(capsys):
    code, text, err = call(
        capsys,
        "preflight",
        "--forget",
        "cat",
        "--method",
        "unlink-oblique",
        "--max-drift",
        "0.01",
        "--json",
    )
    assert code == 0, err
    report = json.loads(text)
    assert 0 < report["strength"] * report["certificate"]["retain_drift"] <= 0.01 + 1e-9


def test_lists(capsys):
    assert "rayleigh  (default)" in call(capsys, "methods")[1]
    assert "weapons" in call(capsys, "prompts", "list")[1]
    assert "a photo of gun" in call(capsys, "prompts", "show", "weapons")[1]
    code, _, err = call(capsys, "prompts", "show", "nothing")
    assert code == 2 and "no prompt set" in one_line(err)


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


def test_generate(capsys, tmp_path):
    argv = [
        "generate",
        "--prompt",
        "a cat",
        "--count",
        "2",
        "--steps",
        "2",
        "--out",
        tmp_path / "g.png",
    ]
    assert call(capsys, *argv)[0] == 0
    code, _, err = call(capsys, *argv)
    assert code == 2 and "--force" in one_line(err)


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
            assert code == 2 and "overlaps the base" in one_line(err)
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


def test_card_tells_what_was_erased(cat, dog, tmp_path, capsys):
    import yaml

    both = (cat + dog).save(tmp_path / "both.safetensors")
    out = tmp_path / "README.md"
    assert (
        call(capsys, "card", both, "--base-model", "owner/name", "--license", "mit", "--out", out)[
            0
        ]
        == 0
    )
    text = out.read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (
        front["base_model"] == "owner/name"
        and front["license"] == "mit"
        and front["library_name"] == "diffusers"
    )
    assert "without cat, dog" in text and "### dog" in text and "states hold is gone" in text
    code, _, err = call(capsys, "card", both, "--out", out)
    assert code == 2 and "exists" in one_line(err)
    assert call(capsys, "card", both)[1].startswith("---\nlibrary_name")
    assert call(capsys, "card", tmp_path / "nothing")[0] in (1, 2)
