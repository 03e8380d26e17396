"""Models of transformers, whole or not at all."""

from __future__ import annotations

from typing import Any


def whole(kind: Any, where: str, **options: Any) -> Any:
    """A transformers model from a folder or the Hub, no pickle, no remote code, for evaluation.

    Args:
        kind: An auto class or a model class.
        where: Folder or Hub id.
        **options: Further ones of `from_pretrained`.

    Raises:
        ValueError: If it cannot be loaded, or if a weight is missing or of another shape:
            transformers would draw it at random, with a warning at most.

    >>> from transformers import CLIPModel
    >>> whole(CLIPModel, "/nowhere", local_files_only=True)
    Traceback (most recent call last):
    ...
    ValueError: cannot load '/nowhere' as CLIPModel: ...
    """
    try:
        network, told = kind.from_pretrained(
            where,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"cannot load {where!r} as {kind.__name__}: {text}") from error
    lacking = sorted([*told["missing_keys"], *(str(m[0]) for m in told["mismatched_keys"])])
    if lacking:
        raise ValueError(
            f"{where} lacks {len(lacking)} weights that {type(network).__name__} needs, such as "
            f"{lacking[0]}; they would be random"
        )
    return network.eval()
