"""Settings tried for each method, on concepts that are not in the test."""

from __future__ import annotations

from typing import Any

from erase_sd.training import Trainer

IN_SCENES = (
    "{}",
    "a photo of a {}",
    "a house {}",
    "a tree {}",
    "a person {}",
    "a chair {}",
    "a flower {}",
)

# Settings tried for each method; the first is its source's, or our default.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "soft": [
        {},
        {"mu": 1.0, "epsilon": 1e-3},
        {"mu": 3.0, "epsilon": 1e-3},
        {"mu": 10.0, "epsilon": 1e-3},
    ],
    "rayleigh": [
        {},
        {"strength": 1.0},
        {"share": 0.03},
        {"epsilon": 1e-2},
        {"rank": 1},
        {"tokens": "eos"},
        {"tokens": "all-but-bos"},
        {"apart": True},
        {"contexts": IN_SCENES},
    ],
    "unlink": [{}, {"rank": 2}, {"tokens": "last-subject"}, {"tokens": "words+eos"}],
    "unlink-deflated": [{}, {"rank": 4}, {"energy": 0.1}, {"rank": 4, "energy": 0.1}],
    "unlink-oblique": [
        {},
        {"rank": 3},
        {"epsilon": 1e-2},
        {"epsilon": 1e-2, "rank": 3},
        {"strength": 1.5},
        {"tokens": "balanced", "rank": 3},
    ],
    "gf": [{}, {"alpha_forget": 30.0}, {"alpha_retain": 1000.0, "alpha_forget": 30.0}],
    "cure": [{}, {"alpha": 5.0}, {"alpha": 30.0}],
    "uce": [
        {},
        {"kept": "vocabulary"},
        {"kept": "vocabulary", "erase_scale": 10.0},
        {"kept": "vocabulary", "erase_scale": 10.0, "ridge": 0.01},
        {"kept": "vocabulary", "tokens": "eos"},
    ],
    "rece": [
        {},
        {"rho": 1e-3},
        {"kept": "vocabulary"},
        {"kept": "vocabulary", "erase_scale": 10.0},
    ],
    "speed": [{}, {"threshold": 0.01}, {"threshold": 1.0}],
    "trce": [{}, {"preserve_scale": 0.1}, {"preserve_scale": 1.0}],
    "dp": [{}, {"energy": 0.03}, {"tokens": "eos"}],
    "leace": [{}, {"tolerance": 1e-3}],
}

# Of trained methods. Published rates are for a network eighty times larger: with them nothing
# moves here, so every grid begins where something does.
TRAINED: dict[Trainer, list[dict[str, Any]]] = {
    "esd-x": [
        {"lr": 1e-3, "steps": 30, "batch": 4, "way": 12},
        {"lr": 3e-4, "steps": 60, "batch": 4, "way": 12},
    ],
    "esd-u": [
        {"lr": 1e-4, "steps": 30, "batch": 4, "way": 12},
        {"lr": 3e-5, "steps": 60, "batch": 4, "way": 12},
    ],
    "fmn": [
        {"lr": 3e-4, "steps": 35, "batch": 4, "draw_steps": 12, "eos": False},
        {"lr": 1e-4, "steps": 35, "batch": 4, "draw_steps": 12},
    ],
    "salun": [
        {"lr": 1e-4, "steps": 50, "images": 48, "draw_steps": 12},
        {"lr": 3e-5, "steps": 50, "images": 48, "draw_steps": 12, "alpha": 1.0},
    ],
    "leco": [
        {"lr": 1e-2, "steps": 30, "batch": 4, "way": 12},
        {"lr": 3e-3, "steps": 60, "batch": 4, "way": 12},
    ],
}
