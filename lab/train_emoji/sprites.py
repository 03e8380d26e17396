"""The world's pictures out of the full set: `python -m lab.train_emoji.sprites emoji.zip`."""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from pathlib import Path

from erase_sd.emoji.world import SPRITES, load_world
from erase_sd.models.files import atomic_path


def build_sprites(source: Path, target: Path = SPRITES) -> int:
    """Pick the world's pictures out of the full picture set.

    Args:
        source: `emoji.zip`: RGBA webp pictures with `metadata.csv` (file_name, artist, label).
        target: Archive to write, `ARTIST/OBJECT.webp` for every object an artist drew.

    Returns:
        How many pictures were written.

    Raises:
        ValueError: If an object has no picture by any artist.
    """
    world = load_world()
    wanted = {c.emoji: c.name for c in world.concepts}
    with zipfile.ZipFile(source) as z:
        rows = list(csv.DictReader(io.TextIOWrapper(z.open("metadata.csv"), "utf-8")))
        files = {
            f"{r['artist']}/{wanted[r['label']]}.webp": z.read(r["file_name"])
            for r in rows
            if r["label"] in wanted and r["artist"] in world.artists
        }
    missing = set(world.names) - {Path(f).stem for f in files}
    if missing:
        raise ValueError(f"no picture in {source} for: {', '.join(sorted(missing))}")
    with atomic_path(target, force=True) as draft, zipfile.ZipFile(draft, "w") as z:
        for name in sorted(files):  # fixed order and date: the archive is reproducible
            z.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), files[name])
    return len(files)


def main(argv: list[str] | None = None) -> int:
    """Write the archive."""
    parser = argparse.ArgumentParser(prog="python -m lab.train_emoji.sprites", description=__doc__)
    parser.add_argument("source", type=Path, help="emoji.zip: webp pictures with metadata.csv")
    parser.add_argument("--out", type=Path, default=SPRITES)
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{build_sprites(args.source, args.out)} pictures in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
