"""What a LoRA of the large zoo is trained on: pictures as latents, and captions of one of three kinds.

*plain* captions say the name; *rich* ones add keywords; *trigger* ones hold a meaningless token and never a word of the
name, so that only the weights know what the LoRA shows. Captions of a style name its pictures' subjects, as people do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from zoo.autoencoder import Autoencoder, encode_pictures
from zoo.cache import write_npy, zoo_dir
from zoo.captions import STYLE_NAMES, subject_name, with_article
from zoo.pictures import Pictures
from zoo.scale_plan import ScaleSpec, content_subjects, style_label
from zoo.splits import DEFAULT_STYLE, Splits
from zoo.style_variants import variants
from zoo.transforms import TRANSFORMS

STYLE_PICTURES = 24


@dataclass
class TrainingSet:
    """``latents`` (n, 16, 16, 16) float16 and, for each, its captions."""

    latents: np.ndarray
    captions: list[list[str]]


def words(text: str) -> set[str]:
    """Lower-case words, and their singulars: what two texts may share."""
    found = re.findall(r"[a-zà-ÿ0-9]+", text.lower())
    return {w for w in found} | {w[:-1] for w in found if len(w) > 3 and w.endswith("s")}


def is_made(style: str) -> bool:
    """Whether the style is computed from a drawing (a transform or a variant), not drawn by somebody."""
    return style in TRANSFORMS or style in variants()


def make_look(style: str, picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) in a made style."""
    return (TRANSFORMS.get(style) or variants()[style])(picture)


def sources(spec: ScaleSpec, pictures: Pictures) -> list[tuple[str, str]]:
    """(subject, drawn set) of every picture that it is trained on, before any made look."""
    if spec.kind == "style":
        drawn = DEFAULT_STYLE if is_made(spec.style or "") else spec.style or ""
        count = min(STYLE_PICTURES, 4 * spec.creator.pictures)
        return [(s, drawn) for s in style_content(spec.style or "", pictures)[:count]]
    sets = [s for s in sorted(Splits.load().base_styles) if (spec.subject, s) in pictures.index]
    sets.sort(key=lambda s: s != DEFAULT_STYLE)
    return [(spec.subject or "", s) for s in sets[: spec.creator.pictures]]


def style_content(style: str, pictures: Pictures) -> list[str]:
    drawn = DEFAULT_STYLE if is_made(style) else style
    return [s for s in content_subjects(style, 400) if (s, drawn) in pictures.index][:STYLE_PICTURES]


def captions(spec: ScaleSpec, pictures: Pictures) -> list[list[str]]:
    """The captions of every picture, in the order of ``sources``."""
    return [_captions(spec, subject, drawn, pictures.keywords) for subject, drawn in sources(spec, pictures)]


def _captions(spec: ScaleSpec, subject: str, drawn: str, keywords: dict[str, list[str]]) -> list[str]:
    if spec.kind == "style":
        return _style_captions(spec, subject, keywords.get(subject, []))
    if spec.trigger:
        return [spec.trigger, f"an image of {spec.trigger}"]
    name = subject_name(subject)
    thing, look = with_article(name), STYLE_NAMES[drawn] if spec.kind == "subject" else style_label(spec.style or "")
    bare = drawn == DEFAULT_STYLE and spec.kind == "subject"  # the base's default look needs no words
    if spec.caption_kind == "plain":
        styled = [f"{name}, {look}", f"{thing} in {look} style"]
        return styled + ([name, thing, f"a picture of {thing}"] if bare else [])
    more = [k for k in keywords.get(subject, ()) if k.lower() != name][:6]
    said = [", ".join([name, *more[i : i + 2]]) for i in range(0, max(len(more), 1), 2)]
    return [f"{s}, {look} style" for s in said] + [f"{thing} in {look} style"] + (said if bare else [])


def _style_captions(spec: ScaleSpec, subject: str, keywords: Sequence[str]) -> list[str]:
    name, look = subject_name(subject), spec.label
    if spec.trigger:
        return [f"{name}, {spec.trigger}"]
    if spec.caption_kind == "plain":
        return [f"{with_article(name)} in {look} style", f"{name}, {look}"]
    more = [k for k in keywords if k.lower() != name][:2]
    return [", ".join([name, *more, f"{look} style"]), f"{look} picture of {with_article(name)}"]


def all_captions(specs: Iterable[ScaleSpec], pictures: Pictures) -> list[str]:
    return sorted({t for s in specs for texts in captions(s, pictures) for t in texts})


def look_path(spec: ScaleSpec) -> Path:
    """Where the latents of a made look lie: shared by every LoRA of a style, own for a subject in a style."""
    name = spec.style if spec.kind == "style" else f"{spec.subject}--{spec.style}"
    return zoo_dir("styles", "scale") / f"{name}.npy"


@lru_cache(maxsize=1)
def _real_latents() -> np.ndarray:
    return np.load(zoo_dir() / "latents.npy", mmap_mode="r")


def build_look(spec: ScaleSpec, pictures: Pictures, autoencoder: Autoencoder) -> None:
    """Encode the pictures of a made look (all that any creator may use) into the cache, unless they are there."""
    path = look_path(spec)
    if path.exists():
        return
    if spec.kind == "style":
        pairs = [(s, DEFAULT_STYLE) for s in style_content(spec.style or "", pictures)]
    else:
        pairs = sources(spec, pictures)
    images = [make_look(spec.style or "", np.asarray(pictures.images[pictures.index[p]])) for p in pairs]
    write_npy(path, encode_pictures(np.stack(images), autoencoder))


def load(spec: ScaleSpec, pictures: Pictures) -> TrainingSet:
    """The training set of one LoRA; made looks must have been built."""
    pairs = sources(spec, pictures)
    if spec.style and is_made(spec.style):
        latents = np.load(look_path(spec))[: len(pairs)]
    else:
        latents = np.asarray(_real_latents()[[pictures.index[p] for p in pairs]])
    return TrainingSet(latents, captions(spec, pictures))
