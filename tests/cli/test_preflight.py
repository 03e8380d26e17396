"""`preflight`: what an erasure would hit."""

import json

from tests.cli.conftest import call


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
