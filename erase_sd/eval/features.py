"""Features of pictures, by the name a protocol gives: what distances between sets are taken in.

An extractor is a factory of `(argument)`: what stands behind a colon in its name ("clip:MODEL"). It
returns a function from pictures to `(n, d)`; those of CLIPs take texts too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from erase_sd._lazy import named
from erase_sd.eval.inception import Width, features_of, identity, load_inception
from erase_sd.models.whole import whole

Embedder = Callable[[Sequence[Any]], np.ndarray]

EXTRACTORS: dict[str, str] = {
    "judge": "erase_sd.emoji.judge:extractor",
    "emoji-clip": "erase_sd.emoji.clip:embedder",
    "clip": "erase_sd.eval.features:any_clip",
    "inception-2048": "erase_sd.eval.features:inception_2048",
    "inception-64": "erase_sd.eval.features:inception_64",
}
INCEPTIONS = ("inception-2048", "inception-64")
# The CLIP whose score stands beside an extractor's distances; another is the one that papers use.
SCORING_CLIP = {"judge": "emoji-clip", "emoji-clip": "emoji-clip"}
PAPERS_CLIP = "openai/clip-vit-large-patch14"
_BATCH = 64


def extractor(name: str) -> Embedder:
    """The extractor of this name.

    Raises:
        ValueError: If it is unknown or cannot be loaded here.

    >>> extractor("judge")([Image.new("RGB", (64, 64))]).shape
    (1, 384)
    """
    kind, _, argument = name.partition(":")
    made: Embedder = named(EXTRACTORS, kind, "extractor")(argument)
    return made


def extract(name: str, images: Sequence[Image.Image]) -> np.ndarray:
    """Features `(n, d)` of images by a named extractor.

    Raises:
        ValueError: If it is unknown or cannot be loaded here.
    """
    embed = extractor(name)
    parts = [embed(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def clip_embedder(model: str) -> Embedder:
    """A function from pictures or texts to unit embeddings `(n, d)`.

    Args:
        model: An extractor that is a CLIP, a folder or a Hub id.

    Raises:
        ValueError: If it cannot be loaded here.
    """
    return extractor(model if model in EXTRACTORS else f"clip:{model}")


def scoring_clip(features: str) -> Embedder:
    """The CLIP for the CLIP score beside these features: theirs, if they are a CLIP's."""
    kind, _, argument = features.partition(":")
    return clip_embedder(argument if kind == "clip" else SCORING_CLIP.get(kind, PAPERS_CLIP))


def any_clip(argument: str) -> Embedder:
    """A CLIP that transformers loads, from a folder or the Hub.

    Raises:
        ValueError: If it cannot be had.
    """
    try:
        model = whole(CLIPModel, argument)
        processor = CLIPProcessor.from_pretrained(argument, trust_remote_code=False)
    except (OSError, ValueError) as error:
        told = f"give a local folder, a Hub id or emoji-clip ({' '.join(str(error).split())})"
        raise ValueError(f"cannot load the CLIP model {argument}: {told}") from error

    @torch.no_grad()
    def embed(items: Sequence[Any]) -> np.ndarray:
        if isinstance(items[0], str):
            inputs = processor(text=list(items), return_tensors="pt", padding=True, truncation=True)
            out = model.text_projection(model.text_model(**inputs).pooler_output)
        else:
            inputs = processor(images=[i.convert("RGB") for i in items], return_tensors="pt")
            out = model.visual_projection(model.vision_model(**inputs).pooler_output)
        return np.asarray(torch.nn.functional.normalize(out, dim=1))

    return embed


def inception_2048(argument: str = "") -> Embedder:
    """InceptionV3's last pooling, as FID is usually taken; the argument names its weights."""
    return _inception(argument, 2048)


def inception_64(argument: str = "") -> Embedder:
    """InceptionV3's first pooling, the convention of SalUn's tables."""
    return _inception(argument, 64)


def _inception(where: str, width: Width) -> Embedder:
    network = load_inception(where, width)
    return lambda images: features_of(network, images)


def with_weights(name: str, inception: str | None) -> str:
    """An extractor's name with where its weights are; others than Inception have their own.

    >>> with_weights("inception-64", "my.pth"), with_weights("judge", "my.pth")
    ('inception-64:my.pth', 'judge')
    """
    kind, _, argument = name.partition(":")
    return f"{kind}:{inception}" if kind in INCEPTIONS and inception else name


def known_as(name: str) -> str:
    """What a protocol hashes of its extractor: where Inception's weights lie does not move it.

    Which they are does.
    """
    kind, _, argument = name.partition(":")
    return kind + identity(argument) if kind in INCEPTIONS and argument else name


def lpips(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Learned perceptual distance (AlexNet) of images `(n, h, w, 3)` in 0..1, `(n,)`.

    Raises:
        ValueError: If its backbone is not here (it comes with torchvision, and its weights from the
            network).
    """
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).net.eval()
    except Exception as error:  # torchmetrics raises what torchvision's absence makes of it
        told = "take lpips out of the metrics"
        raise ValueError(f"LPIPS needs torchvision and its AlexNet weights; {told}") from error
    pairs = [torch.split(torch.from_numpy(x).permute(0, 3, 1, 2), 16) for x in (a, b)]
    with torch.no_grad():
        rows = [network(x, y, normalize=True).flatten() for x, y in zip(*pairs, strict=True)]
    return np.asarray(torch.cat(rows).double())
