"""The method study: `python -m erase_sd.eval.study` compares every method on the embedded model.

Each method is first tuned on concepts that are not in the test, then tested on objects, families and
artists: does the concept go, under names the edit never saw as well, and what happens to the rest?
Every measurement is appended to a journal as it is made, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from erase_sd.certify import change, recoverability
from erase_sd.emoji.world import load_world, with_article
from erase_sd.erasure import Erasure, combine, weight_grams
from erase_sd.eval.judge import _judge, judge
from erase_sd.fitting import fit
from erase_sd.pipelines.live import LiveErasure
from erase_sd.text import TextEncoder

STEPS, GUIDANCE = 12, 3.0
TEMPLATES = ("a picture of {}", "{} on a blue background", "an emoji of {} by noto", "{} with a white background")
OBJECTS = (
    "cat",
    "dog",
    "tiger",
    "horse",
    "snake",
    "pizza",
    "car",
    "rocket",
    "cake",
    "church",
    "umbrella",
    "mushroom",
)
FAMILIES = ("weapon", "alcohol")
ARTISTS = ("noto", "fluent")
TUNE_OBJECTS, TUNE_FAMILIES, TUNE_ARTISTS = ("fox", "banana", "violin"), ("instrument",), ("twemoji",)

# Settings tried for each method; the first is its published (or our a priori) one.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "unlink": [{"rank": 1}, {"rank": 2}, {"tokens": "last-subject"}, {"tokens": "words+eos"}],
    "unlink-deflated": [{"rank": 1}, {"rank": 4}, {"rank": 1, "energy": 0.1}, {"rank": 4, "energy": 0.1}],
    "unlink-oblique": [{"epsilon": e, "rank": k} for e in (1e-3, 1e-2) for k in (1, 3)],
    "rayleigh": [
        {"epsilon": 1e-3, "rank": 1},
        {"epsilon": 1e-3, "rank": 2},
        {"epsilon": 1e-2, "rank": 1},
        {"epsilon": 1e-2, "rank": 3},
        {"epsilon": 1e-1, "rank": 1},
        {"epsilon": 1e-2, "rank": 1, "strength": 1.5},
        {"epsilon": 1e-3, "rank": 1, "strength": 1.5},
    ],
    "gf": [{}, {"alpha_forget": 30.0}, {"alpha_retain": 1000.0, "alpha_forget": 30.0}],
    "cure": [{}, {"alpha": 5.0}, {"alpha": 30.0}],
    "uce": [
        {},
        {"kept": "vocabulary"},
        {"kept": "vocabulary", "erase_scale": 10.0},
        {"kept": "vocabulary", "erase_scale": 10.0, "ridge": 0.01},
    ],
    "rece": [{}, {"rho": 1e-3}, {"kept": "vocabulary"}, {"kept": "vocabulary", "erase_scale": 10.0}],
    "speed": [{}, {"threshold": 0.01}, {"threshold": 1.0}],
    "leace": [{}, {"tolerance": 1e-3}],
}


@dataclass(frozen=True)
class Target:
    """One thing to erase: what the edit is told, and how its absence is tested."""

    kind: str  # "object", "family", "artist" or "ten" (objects erased one by one and joined)
    name: str
    forget: tuple[str, ...]
    probes: tuple[str, ...]  # the concept itself, in sentences the edit was not built from
    synonyms: tuple[str, ...]  # other names for it, unknown to the edit
    retain: tuple[str, ...]  # told to keep
    kept_in: tuple[str, ...]  # objects of the retain list
    kept_out: tuple[str, ...]  # objects that nobody listed
    neighbours: tuple[str, ...]  # of the same family, not listed


def target(kind: str, name: str) -> Target:
    """Build the test of one object, family or artist; bystanders follow from its name."""
    world = load_world()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    if kind == "artist":
        others = [a for a in world.artists if a != name]
        nouns = [str(n) for n in rng.choice(world.names, 20, replace=False)]
        probes = tuple(f"{with_article(n)} by {name}" for n in nouns[:4])
        synonyms = tuple(f"{with_article(n)} {form}" for n, form in zip(nouns[4:8], ARTIST_FORMS * 2, strict=True))
        synonyms = tuple(s.format(name) for s in synonyms)
        return Target(
            kind, name, (name, f"by {name}", f"in the style of {name}"), probes, synonyms,
            tuple(nouns[8:18]), tuple(nouns[8:14]), tuple(nouns[:4] + nouns[18:]), tuple(others),
        )  # fmt: skip
    if kind == "ten":
        gone = [c for c in world.concepts if c.name in OBJECTS[:10]]
    else:
        gone = [c for c in world.concepts if (c.name == name if kind == "object" else c.family == name)]
    families = {c.family for c in gone}
    rest = [c for c in world.concepts if c not in gone]
    order = [rest[i] for i in rng.permutation(len(rest))]
    near = [c.name for c in order if c.family in families] or [c.name for c in order if c.family == "object"]
    near = near[:4]
    pool = [c.name for c in order if c.name not in near]
    return Target(
        kind,
        name,
        tuple(c.name for c in gone),
        tuple(TEMPLATES[i % 4].format(with_article(c.name)) for i, c in enumerate(gone * (4 if len(gone) == 1 else 1))),
        tuple(with_article(n) for c in gone for n in (*c.names[1:], *c.held_out)),
        tuple(pool[:20]),
        tuple(pool[:6]),
        tuple(pool[20:26]),
        tuple(near),
    )


ARTIST_FORMS = ("in {} style", "{} style")


class Study:
    """The model, the journal and the measurements."""

    def __init__(self, out: Path, seeds: int) -> None:
        from erase_sd.cli.common import load_pipeline
        from erase_sd.emoji.models import EMOJI_SD

        out.mkdir(parents=True, exist_ok=True)
        self.seeds = seeds
        self.pipe = load_pipeline(EMOJI_SD)
        self.live = LiveErasure.of(self.pipe)
        self.weights = self.live.originals()
        self.encoder = TextEncoder.of(self.pipe)
        model = hashlib.sha256(self.encoder.fingerprint.encode())
        for weight in self.weights.values():
            model.update(weight.numpy().tobytes())
        # Another model or another test is another study.
        self.journal = out / f"study-{model.hexdigest()[:12]}.jsonl"
        self.done: dict[str, dict[str, Any]] = {}
        if self.journal.exists():
            for line in self.journal.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that an interruption cut; its edit is measured again
                self.done[entry["key"]] = entry
        self._embeddings: dict[str, torch.Tensor] = {}
        self._originals: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], seed: int) -> Any:
        """Images of prompts at `seed`, `seed + 1`, …; text states are computed once."""
        new = [p for p in dict.fromkeys([*prompts, ""]) if p not in self._embeddings]
        if new:
            self._embeddings |= dict(zip(new, self.encoder.encode(new).states, strict=True))
        noise = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        return self.pipe(
            prompt_embeds=torch.stack([self._embeddings[p] for p in prompts]),
            negative_prompt_embeds=torch.stack([self._embeddings[""]] * len(prompts)),
            generator=noise,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
        ).images

    def make(self, method: str, setting: dict[str, Any], t: Target) -> Erasure:
        """The erasure of a target by a method at a setting."""
        options = dict(setting)
        apart = bool(options.pop("apart", False)) or t.kind == "ten"
        retain = list(t.retain) if method != "unlink" else []
        if options.pop("kept", None) == "vocabulary":
            from erase_sd.background import background, meanings
            from erase_sd.fitting import NEAR

            ordinary = background(self.encoder)
            near = set(ordinary.near(meanings(self.encoder, list(t.forget)), NEAR))
            retain += [p for i, p in enumerate(ordinary.prompts) if i not in near and p not in t.forget]
        groups = [[n] for n in t.forget] if apart else [list(t.forget)]
        return combine(
            [
                fit(self.encoder, g, retain=retain, method=method, weights=self.weights, name=g[0], **options)
                for g in groups
            ]
        )

    def prompts(self, t: Target) -> dict[str, list[tuple[str, str]]]:
        """Prompts by role, each with what the judge should say."""
        first = {n: c.name for c in load_world().concepts for n in c.all_names}
        if t.kind == "artist":
            return {
                "forget": [(p, t.name) for p in t.probes],
                "synonym": [(p, t.name) for p in t.synonyms],
                "in": [(with_article(n), n) for n in t.kept_in],
                "out": [(with_article(n), n) for n in t.kept_out],
                "neighbour": [(f"{with_article(t.kept_in[i])} by {a}", a) for i, a in enumerate(t.neighbours)],
            }
        gone = [first[n] for n in t.forget]
        return {
            "forget": [(p, gone[i % len(gone)]) for i, p in enumerate(t.probes)],
            "synonym": [(p, first[p.removeprefix("a ").removeprefix("an ")]) for p in t.synonyms],
            "in": [(f"a photo of {with_article(n)}", n) for n in t.kept_in],
            "out": [(f"a photo of {with_article(n)}", n) for n in t.kept_out],
            "neighbour": [(f"a photo of {with_article(n)}", n) for n in t.neighbours],
        }

    def measure(self, t: Target, erasure: Erasure | None, seed: int, roles: Sequence[str]) -> dict[str, Any]:
        """Draw all prompts of some roles and judge them: hits per role, pixels and features of bystanders."""
        by_role = {r: v for r, v in self.prompts(t).items() if r in roles and v}
        flat = [(role, p, want) for role, pairs in by_role.items() for p, want in pairs]
        if erasure is not None:
            self.live.add(erasure)
        try:
            images = self.draw([p for _, p, _ in flat], 1000 * seed)
        finally:
            if erasure is not None:
                self.live.take()
        seen = judge(images)
        hits: dict[str, list[bool]] = {}
        for (role, _, want), top, artist in zip(flat, seen.top, seen.artist, strict=True):
            hits.setdefault(role, []).append(want in (top, artist))
        stays = [i for i, (role, _, _) in enumerate(flat) if role in ("in", "out", "neighbour")]
        pixels = np.stack([np.asarray(images[i]) for i in stays])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            features = _judge().embed(x).numpy()
        return {"hits": hits, "pixels": pixels, "features": features}

    def score(
        self, phase: str, method: str, setting: dict[str, Any], t: Target, roles: Sequence[str]
    ) -> dict[str, Any]:
        """Everything about one edit, from the journal if it is there."""
        key = json.dumps([phase, method, setting, t.kind, t.name, self.seeds, STEPS], sort_keys=True)
        if key in self.done:
            return self.done[key]
        erasure = self.make(method, setting, t)
        edit, subjects = erasure.edit, self.encoder.subjects(list(t.forget))
        edited = {n: self.weights[n] for n in erasure.sites(self.weights)}
        gram = weight_grams(self.encoder.architecture, edited, self.encoder.widths)["tokens"]
        entry: dict[str, Any] = {
            "key": key, "phase": phase, "method": method, "setting": setting, "kind": t.kind, "name": t.name,
            "norm": edit.norm, "null_change": float(change(edit, self.encoder.encode([""]).rows("all")).max()),
            "recoverability": float(recoverability(edit, subjects, gram).min()),
        }  # fmt: skip
        before = {r: [] for r in roles}  # type: dict[str, list[bool]]
        after = {r: [] for r in roles}  # type: dict[str, list[bool]]
        drift, old, new = [], [], []
        for seed in range(self.seeds):
            base, now = self.original(t, seed, roles), self.measure(t, erasure, seed, roles)
            for role in base["hits"]:
                before[role] += base["hits"][role]
                after[role] += now["hits"][role]
            drift.append(np.abs(base["pixels"].astype(float) - now["pixels"]).mean() / 255)
            old.append(base["features"])
            new.append(now["features"])
        entry["before"] = {r: float(np.mean(v)) for r, v in before.items() if v}
        entry["after"] = {r: float(np.mean(v)) for r, v in after.items() if v}
        entry["drift"] = float(np.mean(drift))
        entry["frechet"] = frechet(np.concatenate(old), np.concatenate(new))
        self.done[key] = entry
        with self.journal.open("a") as f:
            f.write(json.dumps(entry) + "\n")
        return entry

    def original(self, t: Target, seed: int, roles: Sequence[str]) -> dict[str, Any]:
        """The unedited model on the same prompts and seeds, drawn once."""
        key = json.dumps([t.kind, t.name, seed, list(roles)])
        if key not in self._originals:
            self._originals[key] = self.measure(t, None, seed, roles)
        return self._originals[key]


def frechet(a: np.ndarray, b: np.ndarray, *, dims: int = 16) -> float:
    """Fréchet distance of two feature sets on the top principal directions of the first.

    With fewer images than feature dimensions the full covariance is singular and the distance
    meaningless; `dims` directions are estimated well from tens of images.
    """
    centre = a.mean(0)
    _, _, vt = np.linalg.svd(a - centre, full_matrices=False)
    p = vt[:dims].T
    a, b = (a - centre) @ p, (b - centre) @ p
    ca, cb = np.cov(a.T), np.cov(b.T)
    # tr (Ca Cb)^(1/2) from the eigenvalues of the symmetric product Ca^(1/2) Cb Ca^(1/2)
    values, vectors = np.linalg.eigh(ca)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross)


def summary(entry: dict[str, Any]) -> dict[str, float]:
    """Forgotten share, retained ratio and their harmonic mean for one edit."""
    left = [entry["after"][r] for r in ("forget", "synonym") if r in entry["after"]]
    # Chance that a concept is gone, synonyms included with equal weight.
    forgotten = 1 - float(np.mean(left))
    ratio = {
        r: entry["after"][r] / max(entry["before"][r], 1e-9) for r in ("in", "out", "neighbour") if r in entry["after"]
    }
    retained = ratio.get("out", 1.0)
    mean = 2 * forgotten * retained / max(forgotten + retained, 1e-9)
    return {
        "forgotten": forgotten,
        "retained": retained,
        "harmonic": mean,
        **{f"ratio_{r}": v for r, v in ratio.items()},
    }


def tune(study: Study) -> dict[str, dict[str, dict[str, Any]]]:
    """Each method's best setting for objects, families and artists, found on other concepts."""
    roles = ("forget", "out", "neighbour")
    plan = {
        "object": [target("object", n) for n in TUNE_OBJECTS],
        "family": [target("family", n) for n in TUNE_FAMILIES],
        "artist": [target("artist", n) for n in TUNE_ARTISTS],
    }
    best: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in plan}
    bar = tqdm(total=sum(len(g) for g in GRIDS.values()) * sum(len(v) for v in plan.values()), desc="tuning")
    for kind, targets in plan.items():
        for method, grid in GRIDS.items():
            scores = []
            for setting in grid:
                values = []
                for t in targets:
                    s = summary(study.score("tune", method, setting, t, roles))
                    near = s.get("ratio_neighbour", 1.0)
                    kept = (s["retained"] + near) / 2
                    values.append(2 * s["forgotten"] * kept / max(s["forgotten"] + kept, 1e-9))
                    bar.update()
                scores.append(float(np.mean(values)))
            best[kind][method] = grid[int(np.argmax(scores))]
    bar.close()
    return best


def run(study: Study) -> list[dict[str, Any]]:
    """All test edits: every method tuned, and the published form of each rival."""
    best = tune(study)
    roles = ("forget", "synonym", "in", "out", "neighbour")
    targets = [target("object", n) for n in OBJECTS]
    targets += [target("family", n) for n in FAMILIES] + [target("artist", n) for n in ARTISTS]
    targets += [target("ten", "ten objects")]
    jobs = []
    for t in targets:
        for method, grid in GRIDS.items():
            tuned = best["object" if t.kind == "ten" else t.kind][method]
            jobs += [("tuned", method, tuned, t)]
            if method in ("unlink", "uce") and tuned != grid[0]:
                jobs += [("published", method, grid[0], t)]
    return [study.score(p, m, s, t, roles) for p, m, s, t in tqdm(jobs, desc="testing")]


COLUMNS = {
    "harmonic": "harmonic mean",
    "forget": "forget",
    "synonym": "synonyms",
    "ratio_in": "listed",
    "ratio_out": "unlisted",
    "ratio_neighbour": "neighbours",
    "drift": "drift",
    "frechet": "Fréchet",
    "null_change": "empty prompt",
    "norm": "‖T‖",
    "recoverability": "revivable to",
}


def table(entries: list[dict[str, Any]], kind: str) -> tuple[list[str], dict[str, dict[str, float]]]:
    """One Markdown table, best first, and its numbers."""
    groups: dict[str, list[dict[str, float]]] = {}
    for e in entries:
        if e["kind"] == kind:
            name = e["method"] + (" (published)" if e["phase"] == "published" else "")
            row = summary(e) | {k: e["after"].get(k, float("nan")) for k in ("forget", "synonym")}
            row |= {k: e[k] for k in ("drift", "frechet", "null_change", "norm")}
            row["recoverability"] = e["recoverability"]
            groups.setdefault(name, []).append(row)
    numbers = {
        name: {c: float(np.nanmean([r.get(c, np.nan) for r in rows])) for c in COLUMNS} for name, rows in groups.items()
    }
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in sorted(numbers.items(), key=lambda item: -item[1]["harmonic"]):
        cells = [f"{row[c]:.2f}" if c in ("norm", "frechet") else f"{row[c]:.3f}" for c in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines, numbers


def plot(numbers: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Forgotten against retained, one panel per kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(numbers), figsize=(5 * len(numbers), 4.6), sharey=True)
    for axis, (kind, rows) in zip(axes, numbers.items(), strict=True):
        for name, row in rows.items():
            x, y = row["ratio_out"], 1 - (row["forget"] + row["synonym"]) / 2
            axis.scatter(x, y, color="#b00020" if name == "rayleigh" else "#37474f")
            axis.annotate(name, (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axis.set(xlabel="retained (unlisted bystanders)", title=kind, xlim=(-0.05, 1.1), ylim=(-0.05, 1.05))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forgotten (own prompts and synonyms)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


INTRODUCTION = """# Which method forgets best, and at what cost

Made by `make study` (`python -m erase_sd.eval.study --seeds {seeds}`) on the shipped emoji-sd: {steps} DDIM
steps, guidance {guidance:g}, {seeds} seeds, the independent judge. Each method at its best setting found on
other concepts ({others}); `(published)` at its source's own defaults.

- **forget**, **synonyms**: how often the judge still finds the concept (lower is better), in sentences the
  edit was not built from, and under names it was never told.
- **listed**, **unlisted**, **neighbours**: accuracy relative to the original on bystanders in the retain
  list, in no list, and of the same family (1 is unharmed). **Harmonic mean** of 1 - (forget + synonyms) / 2
  and unlisted.
- **drift**: mean absolute pixel change of bystanders at equal seeds (0..1); **Fréchet** distance of their
  judge features; **empty prompt**: largest relative change of its states; **‖T‖** the edit's gain;
  **revivable to**: how near the best embedding comes to the concept (1 is far).

"""


def main(argv: list[str] | None = None) -> int:
    """Run or resume the study and write docs/method-study.md."""
    parser = argparse.ArgumentParser(prog="python -m erase_sd.eval.study", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/study"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args(argv)
    from erase_sd.cli.common import quiet_libraries

    quiet_libraries()
    study = Study(args.work, args.seeds)
    entries = run(study)
    best = tune(study)
    lines = INTRODUCTION.format(
        seeds=args.seeds, steps=STEPS, guidance=GUIDANCE, others=", ".join(TUNE_OBJECTS + TUNE_FAMILIES + TUNE_ARTISTS)
    ).splitlines()
    numbers = {}
    for kind, names in (("object", OBJECTS), ("family", FAMILIES), ("artist", ARTISTS), ("ten", OBJECTS[:10])):
        rows, numbers[kind] = table(entries, kind)
        lines += [f"## {kind}: {', '.join(names)}", "", *rows, ""]
    args.out.mkdir(exist_ok=True)
    plot(numbers, args.out / "method-study.png")
    lines += ["![forgotten against retained](method-study.png)", "", "## Settings chosen", ""]
    lines += ["| method | objects | families | artists |", "|---|---|---|---|"]
    for method in GRIDS:
        cells = [", ".join(f"{k} = {v}" for k, v in best[kind][method].items()) or "defaults" for kind in best]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    (args.out / "method-study.md").write_text("\n".join(lines) + "\n")
    (args.out / "method-study.json").write_text(json.dumps({"settings": best, "numbers": numbers}, indent=1))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
