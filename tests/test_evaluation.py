"""Metrics against references, protocols and their hashes, runs that are cut and go on, reports."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.linalg
import yaml
from PIL import Image

from erase_sd.cli.main import main
from erase_sd.eval.attack import ATTACKS, attacked
from erase_sd.eval.detectors import CONVENTIONS, count_detections
from erase_sd.eval.metrics import bootstrap, cmmd, frechet_distance, kernel_distance
from erase_sd.eval.protocol import available, load_protocol
from erase_sd.eval.runner import accuracy, batches, counts
from erase_sd.text.encoder import TextEncoder

rng = np.random.default_rng(0)


class TestMetrics:
    def test_frechet_is_the_textbook_formula(self):
        a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(1, 2, size=(200, 6))
        ca, cb = np.cov(a.T), np.cov(b.T)
        want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)
        assert frechet_distance(a, b) == pytest.approx(want, rel=1e-8)

    def test_frechet_with_fewer_images_than_features(self):
        """Both sets in one 4-dimensional subspace of 50: the distance is that within the subspace."""
        basis = np.linalg.qr(rng.normal(size=(50, 4)))[0]
        a, b = rng.normal(size=(9, 4)), rng.normal(2, 1, size=(7, 4))
        assert frechet_distance(a @ basis.T, b @ basis.T) == pytest.approx(frechet_distance(a, b), rel=1e-9)
        assert frechet_distance(a @ basis.T, a @ basis.T) == pytest.approx(0, abs=1e-9)

    def test_frechet_agrees_with_torchmetrics(self):
        import torch
        from torchmetrics.image.fid import _compute_fid

        a, b = rng.normal(size=(100, 5)), rng.normal(0.5, 2, size=(90, 5))
        parts = [torch.tensor(v) for x in (a, b) for v in (x.mean(0), np.cov(x.T))]
        assert frechet_distance(a, b) == pytest.approx(float(_compute_fid(*parts)), rel=1e-6)

    def test_kid_agrees_with_sklearns_kernel(self):
        from sklearn.metrics.pairwise import polynomial_kernel

        a, b = rng.normal(size=(40, 8)), rng.normal(0.3, 1, size=(30, 8))
        kaa, kbb, kab = (polynomial_kernel(x, y, degree=3, gamma=1 / 8, coef0=1) for x, y in ((a, a), (b, b), (a, b)))
        want = (kaa.sum() - kaa.trace()) / (40 * 39) + (kbb.sum() - kbb.trace()) / (30 * 29) - 2 * kab.mean()
        assert kernel_distance(a, b) == pytest.approx(want)

    def test_cmmd_agrees_with_sklearns_kernel(self):
        from sklearn.metrics.pairwise import rbf_kernel

        a, b = rng.normal(size=(20, 8)), rng.normal(1, 1, size=(25, 8))
        want = 1000 * sum(s * rbf_kernel(x, y, gamma=1 / 200).mean() for s, x, y in ((1, a, a), (1, b, b), (-2, a, b)))
        assert cmmd(a, b) == pytest.approx(want)

    def test_bootstrap_covers_and_is_seeded(self):
        values = rng.normal(3, 1, size=200)
        low, high = bootstrap(values)
        assert low < values.mean() < high and (low, high) == bootstrap(values)
        assert bootstrap([1.0] * 5) == (1.0, 1.0)
        with pytest.raises(ValueError, match="at least one"):
            bootstrap([])


class TestDetectors:
    FOUND = [
        {"class": "FEET_EXPOSED", "score": 0.7},
        {"class": "FEET_EXPOSED", "score": 0.65},
        {"class": "FEMALE_BREAST_EXPOSED", "score": 0.5},
        {"class": "FACE_FEMALE", "score": 0.9},
    ]

    @pytest.mark.parametrize(
        "name,want",
        [
            ("mace", ["FEET_EXPOSED", "FEET_EXPOSED"]),
            ("rece", ["FEET_EXPOSED"]),
            ("speed", ["FEET_EXPOSED", "FEET_EXPOSED"]),
            ("unlearndiff", ["FEMALE_BREAST_EXPOSED"]),
            ("image-any", []),
        ],
    )
    def test_conventions_count_as_they_say(self, name, want):
        assert count_detections(self.FOUND, CONVENTIONS[name]) == want

    def test_nudenet_on_real_photographs(self):
        """A portrait of a woman in a space suit and a picture of a cup: a face in one, nothing in the other."""
        from skimage import data

        from erase_sd.eval.detectors import NudeNet

        detector = NudeNet("mace")
        woman, cup = detector([Image.fromarray(data.astronaut()), Image.fromarray(data.coffee())])
        assert "FACE_FEMALE" in {d["class"] for d in woman["detections"]}
        assert woman["labels"] == [] and cup["detections"] == []
        assert detector.about["threshold"] == 0.6 and detector.about["version"]

    def test_judge_and_emoji_clip_name_what_is_drawn(self):
        from erase_sd.emoji.render import available_objects, render
        from erase_sd.emoji.world import Scene, load_world
        from erase_sd.eval.detectors import ClipZeroShot, EmojiJudge

        names = ["pizza", "car", "cactus"]
        world = load_world()
        scenes = [Scene((world.names.index(n),), 0, "white", ("",), 5) for n in names]
        assert all(s.objects[0] in available_objects()[0] for s in scenes)
        images = [Image.fromarray(render(s)) for s in scenes]
        assert [r["labels"][0] for r in EmojiJudge()(images)] == names
        assert [r["labels"][0] for r in ClipZeroShot(names)(images)] == names


class TestProtocols:
    @pytest.mark.parametrize("name", sorted(available()))
    def test_every_protocol_parses(self, name, tmp_path):
        raw = yaml.safe_load(
            (__import__("erase_sd.eval.protocol", fromlist=["HERE"]).HERE / f"{name}.yaml").read_text()
        )
        data = None
        if "csv" in raw["rows"]:
            columns = {k: [v] if isinstance(v, str) else v for k, v in raw["rows"]["csv"]["columns"].items()}
            data = tmp_path / "data.csv"
            value = {"prompt": "a, quoted prompt", "seed": "7", "guidance": "6.5", "want": "x"}
            data.write_text(
                ",".join(c[0] for c in columns.values()) + "\n" + ",".join(f'"{value[k]}"' for k in columns) + "\n"
            )
        protocol = load_protocol(name, data=data)
        assert protocol.rows and protocol.name == name
        if data:
            row = protocol.rows[0]
            assert row.prompt == "a, quoted prompt" and row.seed == 7
            if "guidance" in raw["rows"]["csv"]["columns"]:
                assert row.guidance == 6.5

    def test_a_missing_column_is_named(self, tmp_path):
        (tmp_path / "x.csv").write_text("text,seed\na,1\n")
        with pytest.raises(ValueError, match="no column prompt .*it has text, seed"):
            load_protocol("nudity-142", data=tmp_path / "x.csv")
        (tmp_path / "x.csv").write_text("prompt,evaluation_seed\na,seven\n")
        with pytest.raises(ValueError, match="row 1"):
            load_protocol("nudity-142", data=tmp_path / "x.csv")

    def test_absent_data_names_the_id_and_the_columns(self):
        with pytest.raises(ValueError, match="AIML-TUDA/i2p.*prompt"):
            load_protocol("i2p-nudity")

    def test_what_moves_the_number_moves_the_hash(self, tmp_path):
        base = yaml.safe_load(SMALL)
        base["detector"] = {"name": "nudenet", "convention": "mace"}

        def hash_of(change):
            value = json.loads(json.dumps(base))
            change(value)
            path = tmp_path / "p.yaml"
            path.write_text(yaml.safe_dump(value))
            return load_protocol(str(path)).hash

        same = hash_of(lambda v: None)
        assert same == hash_of(lambda v: v.update(summary="other words", metrics=["accuracy", "drift"]))
        changes = [
            lambda v: v["rows"].update(count=3),
            lambda v: v["generation"].update(steps=4),
            lambda v: v["generation"].update(guidance=2.5),
            lambda v: v["generation"].update(scheduler="DDIMScheduler"),
            lambda v: v["detector"].update(convention="rece"),
            lambda v: v.update(features="emoji-clip"),
        ]
        hashes = [hash_of(c) for c in changes]
        assert len({same, *hashes}) == len(changes) + 1

    def test_a_seed_or_threshold_moves_the_hash(self, monkeypatch):
        from dataclasses import replace

        from erase_sd.eval import detectors

        protocol = load_protocol("emoji-objects")
        other = replace(protocol, rows=(replace(protocol.rows[0], seed=999), *protocol.rows[1:]))
        assert other.hash != protocol.hash
        nude = replace(protocol, detector=detectors.DetectorSpec("nudenet", {"convention": "mace"}))
        first = nude.hash
        changed = replace(CONVENTIONS["mace"], threshold=0.5)
        monkeypatch.setitem(detectors.CONVENTIONS, "mace", changed)
        assert replace(nude).hash != first

    @pytest.mark.parametrize(
        "text,error",
        [
            ("[]", "not a protocol"),
            ("rows: {}\ndetector: {name: judge}", "one of csv"),
            ("rows: {emoji: cars}\ndetector: {name: judge}", "emoji rows"),
            ("detector: {name: judge}", "lacks 'rows'"),
            ("rows: {}\ndetector: {name: judge}\nseeds: 3", "unknown key 'seeds'"),
            ("a: [", "not valid YAML"),
        ],
    )
    def test_bad_protocols(self, tmp_path, text, error):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ValueError, match=error):
            load_protocol(str(tmp_path / "p.yaml"))

    def test_batches_hold_every_row_once_and_one_group(self):
        protocol = load_protocol("emoji-policy")
        made = batches(protocol)
        assert sorted(r.id for b in made for r in b) == sorted(r.id for r in protocol.rows)
        assert all(len({r.group for r in b}) == 1 and len(b) <= protocol.generation.batch for b in made)


def test_accuracy_and_counts():
    protocol = load_protocol("emoji-objects").limited(1)
    records = [{"labels": [r.want]} for r in protocol.rows]
    found = accuracy(protocol.rows, records)
    assert found["UA"]["mean"] == 0 and found["RA"]["mean"] == 1
    nothing = accuracy(protocol.rows, [{"labels": []} for _ in protocol.rows])
    assert nothing["UA"]["mean"] == 1 and nothing["RA"]["mean"] == 0
    before, after = [{"labels": ["a", "a"]}, {"labels": ["b"]}], [{"labels": ["a"]}, {"labels": []}]
    told = counts(after, before)
    assert told["total"] == 1 and told["images with any"] == 1 and told["decrease"] == pytest.approx(2 / 3, abs=1e-6)
    assert counts(after, [{"labels": []}])["decrease"] is None


SMALL = """
rows: {emoji: objects, count: 4, keep: 4, groups: {cat: [cat], car: [car]}}
forget: {cat: [cat], car: [car]}
generation: {steps: 3, guidance: 3.0, batch: 2}
detector: {name: judge}
metrics: [accuracy, drift, frechet, clip-score]
features: judge
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run in one process."""
    root = tmp_path_factory.mktemp("run")
    (root / "small.yaml").write_text(SMALL)
    out = root / "whole"
    assert main(["eval", "run", str(root / "small.yaml"), "--method", "unlink", "--out", str(out)]) == 0
    return root, out


def command(root, out):
    return ["eval", "run", str(root / "small.yaml"), "--method", "unlink", "--out", str(out)]


def test_a_run_writes_images_a_manifest_and_results(whole):
    root, out = whole
    result = json.loads((out / "results.json").read_text())
    assert set(result["variants"]) == {"original", "unlink"}
    lines = (out / "unlink" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == len(load_protocol(str(root / "small.yaml")).rows)
    assert all((out / "unlink" / json.loads(line)["file"]).is_file() for line in lines)
    assert result["variants"]["original"]["drift"]["retain"]["mean"] == 0
    assert result["variants"]["unlink"]["drift"]["forget"]["mean"] > 0
    assert result["variants"]["original"]["frechet to the original"]["value"] == pytest.approx(0, abs=1e-6)


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    """SIGKILL at ten random moments, then to the end: the same bytes, no image twice, none lost."""
    root, out = whole
    cut = tmp_path / "cut"
    chance = random.Random(0)
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                main(command(root, cut))
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.1, 1.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert main(command(root, cut)) == 0
    assert (cut / "results.json").read_bytes() == (out / "results.json").read_bytes()
    for variant in ("original", "unlink"):
        assert (cut / variant / "manifest.jsonl").read_bytes() == (out / variant / "manifest.jsonl").read_bytes()


def test_two_processes_give_the_result_of_one(whole, tmp_path):
    root, out = whole
    two = tmp_path / "two"
    # accelerate's own launcher starts one process on a CPU; torch's starts two.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
              "erase_sd.cli.main", *command(root, two)]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (two / "results.json").read_bytes() == (out / "results.json").read_bytes()


def test_another_run_in_the_same_folder_is_refused(whole, capsys):
    root, out = whole
    assert main([*command(root, out), "--steps", "4"]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_changed_image_is_noticed(whole, tmp_path, capsys):
    import shutil

    root, out = whole
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    image = next((copy / "unlink" / "images").iterdir())
    image.write_bytes(image.read_bytes()[:-1])
    assert main(command(root, copy)) == 2
    assert "was changed" in capsys.readouterr().err


def test_compare_refuses_other_hashes(whole, tmp_path, capsys):
    _, out = whole
    other = json.loads((out / "results.json").read_text())
    other["protocol"]["hash"] = "0" * 16
    (tmp_path / "results.json").write_text(json.dumps(other))
    assert main(["eval", "compare", str(out), str(out)]) == 0
    assert main(["eval", "compare", str(out), str(tmp_path)]) == 2
    assert "not comparable" in capsys.readouterr().err
    assert main(["eval", "compare", str(out), str(tmp_path), "--anyway"]) == 0
    assert "NOT COMPARABLE" in capsys.readouterr().out
    (tmp_path / "results.json").write_text("{}")
    assert main(["eval", "compare", str(tmp_path)]) == 2


def test_the_report_is_one_page_that_asks_for_nothing(whole, tmp_path):
    _, out = whole
    assert main(["eval", "report", str(out), "--out", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    page = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", text)  # pictures may spell anything
    assert set(re.findall(r"(?:src|href|url)\W{1,3}(\w+)", page)) == {"data"} and "://" not in page
    assert text.count("<img") == 2 * 16 and "a photo of a cat" in text
    assert "forget residual" in text and 'aria-label="spectrum"' in text


def test_lpips_without_its_backbone_says_so():
    from erase_sd.eval.runner import lpips

    with pytest.raises(ValueError, match="needs torchvision"):
        lpips(np.zeros((2, 64, 64, 3), np.float32), np.zeros((2, 64, 64, 3), np.float32))


def test_artists_are_told_apart_as_unlearncanvas_does():
    protocol = load_protocol("emoji-artists")
    assert {r.role for r in protocol.rows} == {"forget", "in-domain", "cross-domain"}
    labels = [{"labels": [r.want] if r.role == "in-domain" else []} for r in protocol.rows]
    found = accuracy(protocol.rows, labels)
    assert [found[n]["mean"] for n in ("UA", "IRA", "CRA")] == [1, 1, 0] and 0 < found["RA"]["mean"] < 1


def test_an_erasure_file_is_a_variant(whole, cat, tmp_path):
    root, _ = whole
    path = cat.save(tmp_path / "no-cat.safetensors")
    out = tmp_path / "run"
    assert (
        main(["eval", "run", str(root / "small.yaml"), "--erasure", str(path), "--limit", "1", "--out", str(out)]) == 0
    )
    assert "no-cat" in json.loads((out / "results.json").read_text())["variants"]


def test_attacks_are_drawn_under_the_protocol(tmp_path, capsys, monkeypatch):
    """Every attack runs against the erased model; the original and its weights are as before."""
    monkeypatch.setattr("erase_sd.eval.attack.STEPS", {"prompt": 2, "inversion": 2, "fine-tuning": 2})
    path = tmp_path / "attack.yaml"
    path.write_text(
        "name: attack\nrows: {emoji: attacks, count: 2, groups: [cat]}\nforget: {cat: [cat]}\n"
        "generation: {steps: 2, guidance: 3.0, batch: 2}\ndetector: {name: judge}\nmetrics: [attacks]\n"
        "features: judge\n"
    )
    protocol = load_protocol(str(path))
    assert {r.attack for r in protocol.rows} == {"", *ATTACKS}
    assert len(protocol.rows) == 2 * 7
    out = tmp_path / "run"
    assert main(["eval", "run", str(path), "--method", "rayleigh", "--out", str(out)]) == 0
    result = json.loads((out / "results.json").read_text())
    for variant in ("original", "rayleigh"):
        assert set(result["variants"][variant]["attacks"]) == {"none", *ATTACKS}
    images = {n: (out / n / "images" / "cat-own-000.png").read_bytes() for n in ("original", "rayleigh")}
    assert images["original"] != images["rayleigh"]
    assert "ASR prompt" in capsys.readouterr().out


def test_an_unknown_attack_is_refused(pipe):
    with (
        pytest.raises(ValueError, match="no attack 'magic'"),
        attacked(pipe, "magic", "cat", "a cat", pictures=[], edit=None),
    ):
        pass


def test_revival_undoes_what_can_be_undone(pipe, cat):
    """States found by algebra make the edited weights answer as the original ones did, up to what is revivable."""
    from erase_sd.pipelines.live import LiveErasure

    with attacked(pipe, "revival", "cat", "a cat", pictures=[], edit=cat.edit) as found:
        live = LiveErasure.of(pipe)
        original = TextEncoder.of(pipe).encode(["a cat"]).states[0].double()
        edited, gap, size, plain = cat.edit.apply_to_features(found[0].double()), 0.0, 0.0, 0.0
        for weight in live.originals().values():
            gap += float(((edited - original) @ weight.double().T).square().sum())
            plain += float(((cat.edit.apply_to_features(original) - original) @ weight.double().T).square().sum())
            size += float((original @ weight.double().T).square().sum())
    assert gap < 0.5 * plain and size > 0


def test_imagenets_labels_hold_several_names(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    from erase_sd.eval.detectors import ImageClassifier

    names = {0: "tench, Tinca tinca", 1: "French horn, horn"}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label=names,
                          label2id={v: k for k, v in names.items()})  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    classifier = ImageClassifier(str(tmp_path))
    assert classifier.vocabulary == {"tench", "Tinca tinca", "French horn", "horn"}
    (seen,) = classifier([Image.new("RGB", (32, 32))])
    assert seen["labels"] in (["tench", "Tinca tinca"], ["French horn", "horn"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {emoji: artists, count: 1, keep: 0, groups: ['../../escape']}", "expected a plain name"),
        ("rows: {emoji: objects, count: 1, keep: 0, groups: {cat: [cat]}}\ngeneration: {dtype: float16}", "in float32"),
    ],
)
def test_a_protocol_is_not_trusted(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(f"name: p\n{text}\ndetector: {{name: judge}}\n")
    with pytest.raises(ValueError, match=message):
        load_protocol(str(tmp_path / "p.yaml"))


def test_what_cannot_be_measured_is_told_before_an_image_is_drawn(tmp_path, capsys):
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: p\nrows: {emoji: objects, count: 1, keep: 0, groups: {cat: [cat]}}\ndetector: {name: judge}\n"
        "metrics: [clip-score]\nfeatures: 'clip:/no/such/folder'\n"
    )
    assert main(["eval", "run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "cannot load the CLIP model /no/such/folder" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_foreign_manifest_shows_no_other_file(whole, tmp_path):
    import shutil

    shutil.copytree(whole[1], tmp_path / "run")
    manifest = tmp_path / "run" / "original" / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    entry = json.loads(lines[0]) | {"file": "../../../secret.png"}
    manifest.write_text("\n".join([json.dumps(entry), *lines[1:]]))
    assert main(["eval", "report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 2


def test_a_checkpoint_is_attacked_with_pictures_of_the_unedited_model(cat, folder, tmp_path, capsys):
    """Its own erasure file tells the revival attack what to invert; another copy of the name is another variant."""
    saved = cat.save(tmp_path / "cat.safetensors")
    assert main(["apply", str(saved), "--out", str(tmp_path / "no-cat")]) == 0
    path = tmp_path / "p.yaml"
    path.write_text(
        "name: p\nrows: {emoji: attacks, count: 1, groups: [cat], attacks: [revival]}\ndetector: {name: judge}\n"
        "generation: {steps: 2, guidance: 3.0, batch: 2}\nmetrics: [attacks]\nfeatures: judge\n"
    )
    argv = ["eval", "run", str(path), "--also", str(tmp_path / "no-cat"), "--erasure", str(saved), "--out"]
    assert main([*argv, str(tmp_path / "out")]) == 0
    paths = [tmp_path / "out" / v / "images" / "cat-revival-000.png" for v in ("no-cat", "cat")]
    baked, live = (np.asarray(Image.open(p), np.float32) for p in paths)
    assert np.abs(baked - live).mean() < 8  # the same attack, up to the rounding of the baked half-precision weights
    (tmp_path / "no-cat" / "erasure.safetensors").unlink()
    assert main([*argv, str(tmp_path / "again")]) == 2
    assert "nothing to invert" in capsys.readouterr().err
