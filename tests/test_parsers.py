"""Parsers of files that may come from strangers: whatever the bytes, a result or one ValueError."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erase_sd.artifact.erasure import Erasure
from erase_sd.artifact.file import dump
from erase_sd.eval.protocol import HERE as PROTOCOLS
from erase_sd.eval.protocol import load_protocol
from erase_sd.eval.report import page, table
from erase_sd.eval.run_folder import claim, results_of, understood
from erase_sd.models.checkpoint import DiffusersFolder
from erase_sd.models.opening import open_checkpoint
from erase_sd.models.single_file import SingleFile
from erase_sd.models.tensor_files import read_tensors, stream_tensors
from erase_sd.prompts import load_set, read_prompts, read_yaml
from erase_sd.text.encoder import TextEncoder
from erase_sd.vision import Cache, Samples, load_data, networks
from lab.faults.changes import ODD, bytes_changed, header_changed, value_changed
from lab.shapes import write_folder, write_single

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
JSON = st.recursive(
    st.sampled_from(ODD) | st.text(max_size=20) | st.floats() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def refuses_or_reads(read, path):
    try:
        return read(path)
    except ValueError as error:
        assert len(str(error)) < 2_000
        return None


@given(rng=seeds, damage=st.sampled_from([bytes_changed, header_changed]))
def test_damaged_erasure_files(rng, damage, cat, tmp_path):
    path = cat.save(tmp_path / "e.safetensors", force=True)
    whole = path.read_bytes()
    path.write_bytes(damage(whole, rng))
    found = refuses_or_reads(Erasure.load, path)
    assert found is None or path.read_bytes() == whole or found.names == cat.names


@given(rng=seeds)
def test_forged_erasure_files(rng, cat, tmp_path):
    path = tmp_path / "e.safetensors"
    about = value_changed(value_changed(cat.describe(), rng), rng)
    try:
        path.write_bytes(dump(about, cat._tensors()))
    except UnicodeEncodeError:
        return
    refuses_or_reads(Erasure.load, path)


@given(rng=seeds)
def test_damaged_single_files(rng, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "parsers"
    folder.mkdir(exist_ok=True)
    good, bad = folder / "good.safetensors", folder / "bad.safetensors"
    if not good.exists():
        write_single(good, "sd1", small=True)
    bad.write_bytes(header_changed(good.read_bytes(), rng))
    model = refuses_or_reads(SingleFile.open, bad)
    if model is not None:
        refuses_or_reads(lambda _: model.weights(), bad)


@given(value=JSON, name=st.sampled_from(["unet/config.json", "model_index.json"]))
def test_odd_configurations(value, name, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "parsed-folder"
    if not folder.exists():
        write_folder(folder, "sd1", small=True)
    whole = (folder / name).read_bytes()
    try:
        text = json.dumps(value).encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(text)
        refuses_or_reads(DiffusersFolder.open, folder)
    finally:
        (folder / name).write_bytes(whole)


ENCODER = ["tokenizer/tokenizer_config.json", "text_encoder/config.json", "tokenizer/vocab.json"]


@given(rng=seeds, name=st.sampled_from(ENCODER), damaged=st.booleans())
def test_odd_encoders_and_tokenizers(rng, name, damaged, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "parsed-encoder"
    if not folder.exists():
        write_folder(folder, "sd1", small=True)
    whole = (folder / name).read_bytes()
    try:
        if damaged:
            text = bytes_changed(whole, rng)
        else:
            text = json.dumps(value_changed(json.loads(whole), rng)).encode(
                "utf-8", "surrogatepass"
            )
        (folder / name).write_bytes(text)
        refuses_or_reads(
            lambda p: TextEncoder.from_checkpoint(DiffusersFolder.open(p)).encode(["a cat"]), folder
        )
    finally:
        (folder / name).write_bytes(whole)


def test_an_encoder_too_shallow_for_the_architecture_is_refused(tmp_path):
    write_folder(tmp_path / "m", "sd1", small=True)
    config = tmp_path / "m" / "text_encoder" / "config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps(about | {"num_hidden_layers": 0}))
    with pytest.raises(ValueError):
        TextEncoder.from_checkpoint(DiffusersFolder.open(tmp_path / "m")).encode(["a cat"])


@given(rng=seeds)
def test_damaged_prompt_sets_and_files(rng, tmp_path):
    path = tmp_path / "s.yaml"
    good = b"concepts:\n  gun: [rifle]\n  knife: []\ntemplates: ['{}']\nneutral: [dog]\n"
    path.write_bytes(bytes_changed(good, rng))
    load_set.cache_clear()
    found = refuses_or_reads(load_set, str(path))
    if found is not None:
        refuses_or_reads(lambda _: found.prompts(), path)
    refuses_or_reads(lambda p: read_prompts([f"file:{p}"], what="forget"), path)


@given(rng=seeds, name=st.sampled_from(sorted(p.name for p in PROTOCOLS.glob("emoji-*.yaml"))))
def test_damaged_protocols(rng, name, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_bytes(bytes_changed((PROTOCOLS / name).read_bytes(), rng))
    refuses_or_reads(lambda p: load_protocol(str(p)), path)


@given(value=JSON)
def test_odd_results(value, tmp_path):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").mkdir()
    whole = {"protocol": {"name": "p", "hash": "0", "rows": 1}, "variants": {"original": value}}
    for told in (value, whole):
        text = json.dumps(told).encode("utf-8", "surrogatepass")
        (tmp_path / "run" / "results.json").write_bytes(text)

        def read(path):
            with understood(path):
                table([results_of(path)])
                page(results_of(path), path)

        refuses_or_reads(read, tmp_path / "run")


@given(value=JSON, whole=st.booleans())
def test_odd_run_journals(value, whole, tmp_path):
    """`run.json` says whose a folder is, and may be of another version, or of nobody."""
    protocol = load_protocol("emoji-objects").limited(1)
    told = {"protocol": protocol.describe(), "variants": value} if whole else value
    path = tmp_path / "run.json"
    path.write_bytes(json.dumps(told).encode("utf-8", "surrogatepass"))
    refuses_or_reads(lambda p: claim(protocol, [], p.parent), path)


@given(rng=seeds, damage=st.sampled_from([bytes_changed, header_changed]))
def test_damaged_vision_caches(rng, damage, tmp_path):
    model = networks.build("mlp", 10, 1)
    path = tmp_path / "c.safetensors"
    if not (tmp_path / "whole").exists():
        data = load_data("digits")
        few = Samples(data.train_x[:20], data.train_y[:20])
        Cache.of(model, few).save(tmp_path / "whole", model)
    path.write_bytes(damage((tmp_path / "whole").read_bytes(), rng))
    found = refuses_or_reads(lambda p: Cache.load(p, model), path)
    for moments in found.moments.values() if found else ():
        for one in moments:
            assert one.gram.shape == (len(one.total), len(one.total))
            assert bool(one.gram.isfinite().all())


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nconcepts: [*b, *b]",
        "concepts: &a [*a]",
        "concepts: " + "[" * 5_000,
        "? [1]\n: 2",
        "a: 2001-99-99",
        "!!python/object/apply:os.system ['true']",
        "a: !!int x",
        "<<: 1",
    ],
)
def test_yaml_that_is_not_plain_is_one_line(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="not valid YAML") as caught:
        read_yaml(path, "a prompt set")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "m.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    yaml = tmp_path / "m.yaml"
    os.link(path, yaml, follow_symlinks=False)
    for read in (
        Erasure.load,
        open_checkpoint,
        results_of,
        lambda p: read_tensors(p, ["a"]),
        lambda p: list(stream_tensors(p)),
        lambda _: load_set(str(yaml)),
        lambda _: load_protocol(str(yaml)),
        lambda p: read_prompts([f"file:{p}"], what="forget"),
    ):
        with pytest.raises(ValueError):
            read(path)
