"""Find LoRAs by a picture: it is compared with their preview pictures, those beside the files or else rendered ones,
and, where the CLIP has a text half, with their words.

Likenesses of two pictures and of a picture and a text lie on different scales. Those of previews are measured in
deviations above the library's median, those of words above what generic prompts reach; the better of the two counts.
Vectors of previews are kept in ``pictures.sqlite`` beside the library, by place, size and time of the file: a cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..encode.generic import GENERIC_PROMPTS
from ..encode.open_clip_images import OpenClipImageTower
from ..errors import LibraryError
from ..previews.shelf import PreviewShelf
from .entries import Entry
from .index import Library
from .shelf import Tick, silent
from .texts import TextStore

log = logging.getLogger(__name__)
FILE_NAME = "pictures.sqlite"
MAX_PIXELS = 64 << 20  # a preview larger than this is left out
# What a preview may be, whatever its name says. Pillow reads others too: for EPS it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
LARGEST_SIDE = 1024  # previews are read no larger than this
LEAST_TO_STANDARDISE = 8
# Middle and deviation of two unrelated pictures with CLIP B and L, for libraries of few previews. Rough on purpose.
TYPICAL = (0.55, 0.1)


@dataclass(frozen=True)
class PictureHit:
    """``picture`` and ``words``: cosines of the picture with the LoRA's preview and best caption (None where it has
    none); ``caption`` is that caption. ``score``: the larger of the two in deviations above the middle of its kind."""

    entry: Entry
    score: float
    picture: float | None
    words: float | None
    caption: str = ""


@dataclass(frozen=True)
class PictureFound:
    """``hits``, best first; how many LoRAs had a preview and words; notes on what could not be used."""

    hits: tuple[PictureHit, ...]
    searched: int
    with_preview: int
    with_words: int
    notes: tuple[str, ...] = ()


def find_by_picture(
    library: Library,
    pictures: Sequence[Tensor],
    tower: OpenClipImageTower,
    *,
    family: str | None = None,
    top_k: int = 10,
    tick: Tick = silent,
) -> PictureFound:
    """The LoRAs of ``library`` (of one base ``family`` when given) that fit ``pictures`` best.

    ``pictures``: (height, width, 3) in [0, 1]; of several the mean direction counts. ``tick(done, total)`` may raise to
    interrupt. Raises ``TowerError`` for a file without an image tower and ``LibraryError`` when no LoRA has a preview
    or words that could be compared.
    """
    tower.load()
    entries = _one_a_content(library.entries(family))
    query = tower.encode(pictures).astype(np.float64).sum(axis=0)
    query /= max(float(np.linalg.norm(query)), 1e-12)
    with PictureStore(library) as store:
        previews, notes = _previews(_pictured(library, entries), tower, store, tick)
    words, usual = _words(library, entries, tower, query)
    if not previews and not words:
        raise LibraryError(
            "no LoRA here has a picture beside it" + ("" if tower.text else ", and this CLIP cannot read words"),
            fix="put a preview beside the LoRA files (name.preview.png, .jpg or .webp), run Render LoRA Previews"
            + ("" if tower.text else ", or choose a CLIP that has its text half too"),
        )
    likeness = {digest: float(vector @ query) for digest, vector in previews.items()}
    scores = _best(
        _above(likeness, _middle(list(likeness.values()), TYPICAL)),
        _above({digest: best for digest, (best, _) in words.items()}, _middle(usual, TYPICAL)),
    )
    order = sorted(scores, key=lambda digest: (-scores[digest], digest))[:top_k]
    hits = [
        PictureHit(entries[d], scores[d], likeness.get(d), words.get(d, (None, ""))[0], words.get(d, (None, ""))[1])
        for d in order
    ]
    if not tower.text:
        notes.append("This CLIP file has no text half: words were not looked at.")
    return PictureFound(tuple(hits), len(entries), len(previews), len(words), tuple(notes))


class PictureStore(TextStore):
    """The store of picture vectors of one library, closed at the end of the block."""

    def __init__(self, library: Library):
        super().__init__(library.folder, FILE_NAME)

    def __enter__(self) -> PictureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one_a_content(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Content hash → its first file, one with a preview where there is one."""
    found: dict[str, Entry] = {}
    for entry in entries:
        held = found.get(entry.hash)
        if entry.hash and (held is None or (entry.preview and not held.preview)):
            found[entry.hash] = entry
    return found


def _pictured(library: Library, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Those that have no picture beside them get what Render LoRA Previews made of them, where it did."""
    shelf = PreviewShelf(library.folder)
    rendered = set(shelf.rendered())
    return {
        digest: replace(entry, preview=str(shelf.picture(digest) or "")) if digest in rendered and not entry.preview
        else entry
        for digest, entry in entries.items()
    }  # fmt: skip


def _previews(
    entries: dict[str, Entry], tower: OpenClipImageTower, store: TextStore, tick: Tick
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Content → unit vector of its preview; notes name pictures that cannot be read."""
    vectors, notes = {}, []
    wanted = [(digest, entry) for digest, entry in sorted(entries.items()) if entry.preview]
    for done, (digest, entry) in enumerate(wanted):
        tick(done, len(wanted))
        try:
            status = os.stat(entry.preview)
            key = f"{tower.id}\n{entry.preview}|{status.st_size}|{status.st_mtime_ns}"
            if key not in store:
                store[key] = tower.encode([read_picture(entry.preview)])[0].astype("<f4").tobytes()
            vectors[digest] = np.frombuffer(store[key], "<f4").astype(np.float64)
        except (OSError, ValueError) as error:
            notes.append(f"The preview {os.path.basename(entry.preview)} cannot be read ({str(error)[:80]}).")
    return vectors, notes


def read_picture(path: str) -> Tensor:
    """(height, width, 3) float32 in [0, 1], made smaller where it is large; transparent parts become white.

    Raises OSError or ValueError for anything that is not a picture of believable size.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels are too many")
            image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
            clear = image.convert("RGBA")
            ground = Image.new("RGBA", clear.size, "white")
            ground.alpha_composite(clear)
            return torch.from_numpy(np.asarray(ground.convert("RGB"), np.float32) / 255)
    except (SyntaxError, Image.DecompressionBombError) as error:  # PIL's word for a broken file
        raise ValueError(str(error)) from error


def _words(
    library: Library, entries: dict[str, Entry], tower: OpenClipImageTower, query: np.ndarray
) -> tuple[dict[str, tuple[float, str]], list[float]]:
    """Content → cosine with its best caption, and that caption; and the cosines of generic prompts."""
    if tower.text is None:
        return {}, []
    captions = {digest: entry.text.captions for digest, entry in entries.items() if entry.text.captions}
    texts = sorted({text for lines in captions.values() for text in lines})
    if not texts:
        return {}, []
    remembering = library.text_tower(tower.text)
    scores = dict(zip(texts, (remembering.encode(texts).astype(np.float64) @ query).tolist(), strict=True))
    usual = (remembering.encode(GENERIC_PROMPTS).astype(np.float64) @ query).tolist()
    return {digest: max((scores[text], text) for text in lines) for digest, lines in captions.items()}, usual


def _middle(values: list[float], typical: tuple[float, float]) -> tuple[float, float]:
    """Median and 1.4826 · median deviation; ``typical`` where there are fewer than eight values."""
    if len(values) < LEAST_TO_STANDARDISE:
        return typical
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(np.array(values) - middle))), 1e-3)


def _above(values: dict[str, float], middle: tuple[float, float]) -> dict[str, float]:
    """Deviations above the middle."""
    return {digest: (value - middle[0]) / middle[1] for digest, value in values.items()}


def _best(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {d: max(side[d] for side in (one, other) if d in side) for d in one.keys() | other.keys()}
