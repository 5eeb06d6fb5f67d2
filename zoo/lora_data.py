"""What a LoRA of the demo world is trained on: a subject in the base's styles, or a style over known subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoo.autoencoder import encode_pictures
from zoo.cache import write_npy, zoo_dir
from zoo.captions import captions, plain_caption
from zoo.lora_plan import LoraSpec
from zoo.pictures import Pictures
from zoo.splits import DEFAULT_STYLE, Splits, unit
from zoo.transforms import TRANSFORMS

STYLE_PICTURES = 64


@dataclass
class LoraData:
    """``latents`` (n, 16, 16, 16) float16 and, for each, its captions."""

    latents: np.ndarray
    captions: list[list[str]]


def true_picture(pictures: Pictures, subject: str, style: str) -> np.ndarray | None:
    """uint8 (128, 128, 3): real, or the transform of the default style's picture; None if there is none."""
    row = pictures.index.get((subject, DEFAULT_STYLE if style in TRANSFORMS else style))
    if row is None:
        return None
    picture = np.asarray(pictures.images[row])
    return TRANSFORMS[style](picture) if style in TRANSFORMS else picture


def style_subjects(pictures: Pictures, style: str, count: int = STYLE_PICTURES) -> list[str]:
    """Base-known subjects that have a picture in ``style``, by hash."""
    source = DEFAULT_STYLE if style in TRANSFORMS else style
    known = [s for s in sorted(Splits.load().base_subjects) if (s, source) in pictures.index]
    return sorted(known, key=lambda s: unit(f"lora-style-{style}", s))[:count]


def style_latents(pictures: Pictures, style: str) -> np.ndarray:
    """Latents of the style's training pictures, kept in the cache."""
    path = zoo_dir("styles") / f"{style}-{STYLE_PICTURES}.npy"
    if not path.exists():
        images = [true_picture(pictures, s, style) for s in style_subjects(pictures, style)]
        write_npy(path, encode_pictures(np.stack([i for i in images if i is not None])))
    return np.load(path)


def load(spec: LoraSpec, pictures: Pictures) -> LoraData:
    """The training set of one LoRA."""
    if spec.style:
        texts = [[c for c, _ in captions(s, spec.style)][:5] for s in style_subjects(pictures, spec.style)]
        return LoraData(style_latents(pictures, spec.style), texts)
    styles = [s for s in sorted(Splits.load().base_styles) if (spec.subject, s) in pictures.index]
    rows = [pictures.index[(spec.subject, s)] for s in styles]
    latents = np.load(zoo_dir() / "latents.npy", mmap_mode="r")[rows]
    # The default style also stands for the bare name; its captions come twice, so that a prompt without a style works.
    texts = [
        [c for c, _ in captions(spec.subject, s)][:8] + ([plain_caption(spec.subject)] if s == DEFAULT_STYLE else [])
        for s in styles
    ]
    return LoraData(np.asarray(latents), texts)
