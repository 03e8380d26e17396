"""Operations on checkpoints and live pipelines, as a Python user calls them."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from erase_sd import Run, Settings, apply, erase, export, preflight, restore, verify
from erase_sd.algebra.edit import LowRankEdit
from erase_sd.artifact.base import WrongBase
from erase_sd.artifact.erasure import Erasure
from erase_sd.models.architectures import TOKENS
from erase_sd.operations.pictures import Pictures
from erase_sd.operations.restoring import subtract

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """A checkpoint of the embedded model without cats, its original tensors beside it."""
    out = tmp_path_factory.mktemp("erased") / "cat-free"
    return erase("emoji-sd", ["cat", "kitten"], out=out, run=Run(keep_undo=True))


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestErase:
    def test_the_result_says_itself(self, erased):
        about = json.loads(json.dumps(erased.json()))
        assert about["edited"]["tensors"] == 14 and about["out"] == str(erased.out)
        assert any("without" not in line and "'cat'" in line for line in erased.lines())
        assert "# emoji-sd without cat" in erased.markdown()

    def test_what_is_written_is_the_erasure_of_the_base(self, erased, weights):
        stored = Erasure.load(erased.out / "erasure.safetensors")
        new = load_file(erased.out / WEIGHTS)
        for name, want in stored.edit_weights(weights).items():
            assert torch.equal(new[name], want)
        assert json.loads((erased.out / "erasure.json").read_text()) == json.loads(
            json.dumps(stored.describe())
        )

    def test_pictures_before_and_after_are_counted(self, tmp_path):
        """The main job as `make demo` runs it, on few pictures."""
        result = erase("emoji-sd", "cat", out=tmp_path / "o", pictures=Pictures(count=1, steps=6))
        assert result.scores["forget"].keys() == {"before", "after"}
        assert result.scores["images"] == len(result.scores["subjects"]) == 9
        assert (tmp_path / "o" / "before_after.png").read_bytes().startswith(b"\x89PNG")
        assert "| cat | forget |" in (tmp_path / "o" / "report.md").read_text()

    def test_a_live_pipeline(self, pipe):
        before = {n: p.detach().clone() for n, p in pipe.unet.named_parameters()}
        result = erase(pipe, "cat")
        assert pipe.erasures == (result.erasure,) and result.out is None
        restore(pipe)
        assert all(torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())

    def test_a_dry_run_writes_nothing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = erase("emoji-sd", "cat", run=Run(dry_run=True, keep_undo=True))
        assert result.out is None and not list(tmp_path.iterdir())


class TestApply:
    def test_gives_what_erase_gave(self, erased, tmp_path):
        apply(erased.out, "emoji-sd", out=tmp_path / "again")
        assert (tmp_path / "again" / WEIGHTS).read_bytes() == (erased.out / WEIGHTS).read_bytes()

    def test_scale_is_the_share_of_the_change(self, erased, weights, tmp_path):
        apply(erased.erasure, out=tmp_path / "half", scale=0.5)
        new, full = load_file(tmp_path / "half" / WEIGHTS), load_file(erased.out / WEIGHTS)
        for name, base in weights.items():
            want = base.float() + 0.5 * (full[name].float() - base.float())
            torch.testing.assert_close(new[name].float(), want, atol=2e-3, rtol=2e-3)
        assert verify(tmp_path / "half").passed

    @pytest.mark.parametrize("scale", [1e6, float("nan"), -11])
    def test_scales_that_make_no_model_are_refused(self, erased, tmp_path, scale):
        with pytest.raises(ValueError, match="scale between"):
            apply(erased.erasure, out=tmp_path / "o", scale=scale)
        assert not list(tmp_path.iterdir())

    def test_another_text_encoder_is_refused(self, erased, embedded, tmp_path):
        base = tmp_path / "base"
        shutil.copytree(embedded, base)
        file = base / "text_encoder" / "model.safetensors"
        state = load_file(file)
        name = next(n for n in state if n.endswith("fc1.weight"))
        save_file({**state, name: state[name] + 1}, file)
        with pytest.raises(WrongBase, match="another text encoder"):
            apply(erased.erasure, base, out=tmp_path / "o")
        assert apply(erased.erasure, base, out=tmp_path / "o", allow_other_base=True).written


class TestVerify:
    def check(self, path, base, name):
        found = {c.name: c for c in verify(path, base).checks}
        return found[name]

    @pytest.fixture
    def copy(self, erased, tmp_path):
        shutil.copytree(erased.out, tmp_path / "copy")
        return tmp_path / "copy"

    def test_everything_holds(self, erased):
        result = verify(erased.out)
        assert result.passed and len(result.checks) == 6
        assert result.json()["passed"] is True and "FAILED" not in "\n".join(result.lines())

    def test_a_changed_weight(self, copy):
        state = load_file(copy / WEIGHTS)
        name = next(n for n in state if n.endswith("attn2.to_k.weight"))
        state[name][0, 0] += 1
        save_file(state, copy / WEIGHTS)
        check = self.check(copy, "emoji-sd", "erased weights")
        assert not check.passed and name in check.why

    def test_an_open_left_side(self, tmp_path):
        out = tmp_path / "robust"
        erase("emoji-sd", "cat", out=out, settings=Settings(robust=True))
        assert self.check(out, "emoji-sd", "left sides closed").passed
        state = load_file(out / WEIGHTS)
        name = next(n for n in state if n.endswith("attn2.to_v.weight"))
        state[name] += 0.01 * Erasure.load(out / "erasure.safetensors").left[name].B.half()
        save_file(state, out / WEIGHTS)
        check = self.check(out, "emoji-sd", "left sides closed")
        assert not check.passed and name in check.why

    def test_words_that_do_not_match(self, copy):
        about = json.loads((copy / "erasure.json").read_text())
        about["concepts"][0]["forget"] = ["dog"]
        (copy / "erasure.json").write_text(json.dumps(about))
        assert not self.check(copy, "emoji-sd", "erasure.json").passed

    def test_a_certificate_that_is_not_true(self, erased, tmp_path):
        from dataclasses import replace

        concept = erased.erasure.concepts[0]
        lie = replace(concept, certificate={**concept.certificate, "forget_residual": 0.0})
        path = replace(erased.erasure, concepts=(lie,)).save(tmp_path / "lie.safetensors")
        check = self.check(path, "emoji-sd", "forget prompts fade")
        assert not check.passed and "is left, not 0.0%" in check.why

    def test_another_text_encoder(self, erased, embedded, tmp_path):
        base = tmp_path / "base"
        shutil.copytree(embedded, base)
        file = base / "text_encoder" / "model.safetensors"
        state = load_file(file)
        name = next(n for n in state if n.endswith("fc1.weight"))
        save_file({**state, name: state[name] + 1}, file)
        assert not self.check(erased.out / "erasure.safetensors", base, "text encoder").passed


class TestUndo:
    def test_restores_bit_for_bit(self, erased, embedded, tmp_path):
        result = restore(erased.out, tmp_path / "back")
        assert result.tensors == 14
        back = files(tmp_path / "back")
        assert back == files(embedded)

    def test_needs_what_was_kept(self, erased, tmp_path):
        shutil.copytree(erased.out, tmp_path / "moved")
        with pytest.raises(ValueError, match="kept only on request"):
            restore(tmp_path / "moved", tmp_path / "back")

    def test_originals_of_another_model_are_refused(self, erased, tmp_path):
        undo = erased.out.with_name("cat-free.undo.safetensors")
        wrong = {n: w + 1 for n, w in load_file(undo).items()}
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(WrongBase):
            restore(erased.out, tmp_path / "back", undo=tmp_path / "wrong.safetensors")
        assert not (tmp_path / "back").exists()

    def test_subtract(self, cat, dog, tmp_path):
        both = (cat + dog).save(tmp_path / "both.safetensors")
        result = subtract(both, ["dog"], tmp_path / "cat.safetensors")
        assert result.concepts == ("cat",)
        assert torch.equal(Erasure.load(result.out).edit.B, cat.edit.B)
        with pytest.raises(ValueError, match="nothing would be left"):
            subtract(result.out, ["cat"], tmp_path / "none.safetensors")


class TestExport:
    def test_one_rank_a_file_and_padding_changes_nothing(self, encoder, weights, tmp_path):
        """Values get one direction more than keys; readers take the first module's rank for all."""
        from erase_sd.fit.solve import fit

        robust = fit(encoder, ["cat"], weights=weights, settings=Settings(robust=True))
        for style, up, down in (
            ("peft", "lora_B.weight", "lora_A.weight"),
            ("kohya", "lora_up.weight", "lora_down.weight"),
        ):
            result = export(robust, tmp_path / f"{style}.safetensors", style=style)
            hosts = {"peft": "loads in diffusers; A1111", "kohya": "loads in A1111, Forge, ComfyUI"}
            assert result.lines()[1].startswith(hosts[style])
            state = load_file(result.out)
            downs = {k: v for k, v in state.items() if k.endswith(down)}
            assert {v.shape[0] for v in downs.values()} == {result.rank} == {robust.rank}
            baked = robust.edit_weights({n: w.float() for n, w in weights.items()})
            for site in robust.editable(weights):
                module = site.module if style == "peft" else site.module.replace(".", "_")
                key = f"unet.{module}" if style == "peft" else f"lora_unet_{module}"
                change = state[f"{key}.{up}"] @ state[f"{key}.{down}"]
                if style == "kohya":
                    assert state[f"{key}.alpha"] == result.rank
                torch.testing.assert_close(
                    weights[site.name].float() + change, baked[site.name], atol=1e-4, rtol=1e-3
                )

    def test_wrong_use(self, cat, tmp_path):
        with pytest.raises(ValueError, match="style of peft, kohya"):
            export(cat, tmp_path / "x.safetensors", style="other")
        with pytest.raises(ValueError, match="dtype of float32 or float16"):
            export(cat, tmp_path / "x.safetensors", dtype="int8")


def test_preflight_writes_nothing_but_its_plot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = preflight("emoji-sd", "cat")
    assert not list(tmp_path.iterdir())
    hit = dict(result.words)
    assert hit["kitty"] > 2 * hit["house"]
    result.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert any("words moved most" in line for line in result.lines())


def test_an_erasure_of_another_width_is_told_and_not_multiplied(erased, tmp_path):
    """Whatever width a file claims, `verify` says so; no matrix of that width is made."""
    stored = Erasure.load(erased.out / "erasure.safetensors")
    (cat,) = stored.concepts
    wide = LowRankEdit(torch.zeros(40_000, 1), torch.zeros(40_000, 1))
    forged = replace(stored, concepts=(replace(cat, right={TOKENS: wide}),))
    checks = {c.name: c for c in verify(forged.save(tmp_path / "e.safetensors")).checks}
    assert "features of width 40000" in checks["forget prompts fade"].why
