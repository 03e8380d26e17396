"""What a model folder may hold: no pickle that stands for weights, no link that leads out of it."""

from __future__ import annotations

from pathlib import Path

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


def is_pickle(name: str) -> bool:
    """Whether a file's name is that of a pickle."""
    return name.endswith(PICKLES)


def check_folder(folder: Path) -> None:
    """Refuse a model folder that would run code where it is loaded, or hand out other files.

    The Hub's cache keeps a model as links into a `blobs` folder beside it; these are its own.

    Args:
        folder: A diffusers folder.

    Raises:
        ValueError: With the first file that is wrong.
    """
    here = folder.resolve()
    homes = (here, here.parent.parent / "blobs")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            target = path.resolve()
            if not any(home == target or home in target.parents for home in homes):
                raise ValueError(
                    f"{path} is a link to {target}, outside the model's folder; copy the file there"
                )
        elif not path.is_file() and not path.is_dir():
            raise ValueError(f"{path} is a pipe or a device, and no part of a model")
    for component in (p for p in folder.iterdir() if p.is_dir()):
        names = [p.name for p in component.iterdir()]
        pickles = [n for n in names if is_pickle(n)]
        if pickles and not any(n.endswith(".safetensors") for n in names):
            raise ValueError(
                f"{component} holds its weights as {pickles[0]} alone, a pickle that can run code "
                "where it is loaded; convert it to safetensors"
            )
