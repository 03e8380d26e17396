"""Generate before and after at equal seeds, and let the judge count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from erase_sd.emoji.world import Concept, load_world
from erase_sd.eval.judge import judge
from erase_sd.eval.sheet import Row, before_after_sheet
from erase_sd.pipelines.sampling import generate

# Not the sentences an edit is usually built from.
TEST_TEMPLATES = ("a picture of a {}", "a {} on a blue background", "an emoji of a {} by noto", "{}")


@dataclass(frozen=True)
class Subject:
    """One thing to look at: its prompts and, in the embedded world, the object the judge should find."""

    label: str
    prompts: tuple[str, ...]
    target: str | None
    forget: bool


def subjects_for(forget: Sequence[str], *, bystanders: int = 8) -> list[Subject]:
    """Forget prompts, then look-alikes of the same family, then objects of all other families."""
    world = load_world()
    hit = [(p, _concept_in(p)) for p in forget]
    gone = {c.name for _, c in hit if c}
    subjects = [
        Subject(p, _test_prompts(p), c.name if c else None, True)
        for p, c in hit[:4]  # a long list shows its first four
    ]
    families = {c.family for _, c in hit if c}
    near = [c for c in world.concepts if c.family in families and c.name not in gone]
    far = [world.family(f)[0] for f in dict.fromkeys(c.family for c in world.concepts) if f not in families]
    chosen = [*near[: bystanders // 2], *far][:bystanders]
    return subjects + [Subject(c.name, _test_prompts(c.name), c.name, False) for c in chosen if c.name not in gone]


def _concept_in(prompt: str) -> Concept | None:
    """The world's object that a prompt names, longest noun first."""
    words = f" {prompt.lower()} "
    pairs = sorted(((n, c) for c in load_world().concepts for n in c.all_names), key=lambda p: -len(p[0]))
    return next((c for n, c in pairs if f" {n} " in words), None)


def _test_prompts(noun: str) -> tuple[str, ...]:
    if len(noun.split()) > 3:  # already a sentence
        return (noun,)
    return tuple(t.format(noun) for t in TEST_TEMPLATES)


def compare(
    pipe: Any,
    subjects: Sequence[Subject],
    apply: Callable[[], object],
    *,
    images: int = 4,
    counted: bool = True,
    steps: int = 20,
    guidance: float = 3.0,
    title: str = "",
) -> tuple[dict[str, Any], Image.Image]:
    """Generate every subject before and after `apply()` and judge both.

    Args:
        pipe: The pipeline, unedited.
        subjects: What to draw.
        apply: Edits the pipeline.
        images: Images per subject.
        counted: Whether the judge counts; it knows the embedded world and nothing else.
        steps: Denoising steps.
        guidance: Guidance scale.
        title: Heading of the sheet.

    Returns:
        JSON-ready scores, and the sheet (three seeds a subject).
    """
    prompts = [s.prompts[i % len(s.prompts)] for s in subjects for i in range(images)]
    seeds = [i for _ in subjects for i in range(images)]
    options: dict[str, Any] = {"steps": steps, "guidance": guidance}
    before = generate(pipe, prompts, seeds, progress="before", **options)
    apply()
    after = generate(pipe, prompts, seeds, progress="after", **options)
    nothing = [""] * len(prompts)
    top_before, top_after = (judge(before).top, judge(after).top) if counted else (nothing, nothing)
    rows, table = [], []
    for i, subject in enumerate(subjects):
        part = slice(i * images, (i + 1) * images)
        entry: dict[str, Any] = {"subject": subject.label, "forget": subject.forget, "images": images}
        if subject.target and counted:
            entry["before"] = float(np.mean([t == subject.target for t in top_before[part]]))
            entry["after"] = float(np.mean([t == subject.target for t in top_after[part]]))
        pairs = zip(before[part], after[part], strict=True)
        entry["pixel_change"] = float(np.mean([_distance(a, b) for a, b in pairs]))
        table.append(entry)
        group = "to forget" if subject.forget else "to keep"
        rows.append(Row(subject.label, group, tuple(before[part][:3]), tuple(after[part][:3])))
    scores: dict[str, Any] = {
        "judge": "erase_sd.emoji judge, top object" if counted else None,
        "steps": steps,
        "guidance": guidance,
        "images": len(prompts),
        "subjects": table,
    }
    for key, wanted in (("forget", True), ("retain", False)):
        group_rows = [r for r in table if r["forget"] is wanted and "before" in r]
        if group_rows:
            scores[key] = {k: float(np.mean([r[k] for r in group_rows])) for k in ("before", "after")}
    return scores, before_after_sheet(rows, title=title)


def _distance(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference of two images, 0..1."""
    x, y = (np.asarray(i.convert("RGB"), np.float32) for i in (a, b))
    return float(np.abs(x - y).mean() / 255)
