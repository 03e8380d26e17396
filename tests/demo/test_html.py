"""What comes from outside is escaped, wherever it is shown."""

import dataclasses

from erase_sd.demo.html import bars, outcome_html, preflight_html, report_html, scores_html
from erase_sd.demo.pictures import Shot

EVIL = "<script>alert('&')</script>"


def test_nothing_gets_through(cat):
    part = dataclasses.replace(cat.concepts[0], name=EVIL, method=EVIL)
    erasure = dataclasses.replace(cat, concepts=(part,))
    shot = Shot(EVIL, EVIL, 0, True, EVIL)
    numbers = {w: dict.fromkeys(("UA", "RA", "TA", "MIA"), 1.0) for w in ("before", "after")}
    pages = [
        bars([(EVIL, 0.5)]),
        preflight_html(erasure, [(EVIL, 0.1)], 0.1),
        scores_html([shot], [EVIL], [EVIL], judged=True),
        scores_html([shot], [EVIL], [EVIL], judged=False),
        outcome_html(EVIL, 0.1, numbers, [(EVIL, 0.5, 0.1)]),
        report_html(EVIL, EVIL),
    ]
    for page in pages:
        assert "script" in page
        assert "<script" not in page


def test_scores_are_counted():
    shots = [Shot("cat", "a cat", s, True, "cat") for s in range(3)]
    shots.append(Shot("dog", "a dog", 0, False, "dog"))
    page = scores_html(shots, ["cat", "cat", "x", "dog"], ["x", "cat", "x", "dog"], judged=True)
    assert "of what was to go: 2/3 before, 1/3 after" in page
    assert "of what was to stay: 1/1 before, 1/1 after" in page
    page = scores_html(shots, ["a"] * 4, ["b"] * 4, judged=False)
    assert "recognised" not in page
    assert "NudeNet, before" in page


def test_bars_are_as_long_as_the_longest():
    assert "width:100.0%" in bars([("a", 0.5), ("b", 0.25)])
    assert "width:50.0%" in bars([("a", 0.5), ("b", 0.25)])
    assert bars([]) == '<div class="bars"></div>'
