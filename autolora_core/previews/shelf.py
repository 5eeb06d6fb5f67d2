"""Previews on disk, in ``previews/`` of an index folder.

    <sha256>.webp, <sha256>-2.webp …   pictures with the LoRA of that content, in the order of the prompts
    <sha256>.safetensors               how they were rendered and what they changed; written last, so that a LoRA that
                                       has this file has its pictures
    without-<id>.webp … .safetensors   the same prompts without a LoRA, once for a base and its settings

Every file is put there whole (:func:`..portable.write_whole`). Pictures are .png where Pillow lacks WebP.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features
from safetensors import SafetensorError
from safetensors.torch import save

from ..errors import FileInUseError
from ..portable import load_whole, remove, sweep, write_bytes
from .difference import difference

FORMAT = "autolora-preview/1"
FOLDER = "previews"
LARGEST_SIDE = 512
QUALITY = 85
SUFFIXES = (".webp", ".png")
LATENTS, CLIP = "latents", "clip"
LARGEST_FILE = 64 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WITHOUT = "without-"


@dataclass(frozen=True)
class Record:
    """``settings``: the id of how it was rendered. ``vectors``: space (``latents``, ``clip``) → (pictures, d) float32,
    changes of a LoRA, embeddings themselves without one. ``towers``: space → what made the vectors."""

    settings: str
    vectors: Mapping[str, np.ndarray]
    towers: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


class PreviewShelf:
    """The previews of the index in ``folder``; nothing is created before something is put there."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder) / FOLDER

    def picture(self, key: str, number: int = 1) -> Path | None:
        """The picture of the ``number``-th prompt kept for a content's SHA-256, or None."""
        stem = _stem(key, number)
        return next((path for end in SUFFIXES if (path := self.folder / f"{stem}{end}").is_file()), None)

    def pictures(self, key: str) -> list[Path]:
        """All that are kept, in the order of the prompts."""
        found: list[Path] = []
        while (path := self.picture(key, len(found) + 1)) is not None:
            found.append(path)
        return found

    def record(self, key: str) -> Record | None:
        """What is known of a content's previews; None where there are none, or the file is damaged."""
        path = self.folder / f"{key}.safetensors"
        try:
            if path.stat().st_size > LARGEST_FILE:
                return None
            tensors, metadata = load_whole(path)
        except (OSError, SafetensorError, ValueError):
            return None
        return _read(tensors, metadata)

    def holds(self, key: str, settings: str, pictures: int) -> bool:
        """Whether ``pictures`` pictures and a record of these settings are there."""
        record = self.record(key)
        return record is not None and record.settings == settings and len(self.pictures(key)) >= pictures

    def put(self, key: str, record: Record, pictures: Sequence[Image.Image]) -> None:
        """Put pictures and record there, in place of what was. Raises ``NotWrittenError``, and on Windows
        ``FileInUseError`` where somebody has a file of before open: the LoRA counts as not rendered then."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove(self.folder / f"{key}.safetensors")  # from here to its end the LoRA counts as not rendered
        for path in self.pictures(key):
            remove(path)
        written = []
        for number, picture in enumerate(pictures, 1):
            data, end = _encoded(picture)
            written.append(self.folder / f"{_stem(key, number)}{end}")
            write_bytes(written[-1], data)
        for path in self.pictures(key):
            if path not in written:  # it would be taken for one of these settings
                raise FileInUseError("an older picture cannot be removed: another program has it open", path=path)
        tensors = {space: torch.from_numpy(np.asarray(rows, np.float32)) for space, rows in record.vectors.items()}
        said = {"format": FORMAT, "settings": record.settings, "name": record.name.encode("utf-8", "replace").decode()}
        said |= {f"tower.{space}": tower for space, tower in record.towers.items()}
        write_bytes(self.folder / f"{key}.safetensors", save(tensors, said))

    def rendered(self) -> Iterator[str]:
        """SHA-256 of every content that has a record, sorted."""
        yield from (name for name, _ in self._records())

    @property
    def state(self) -> str:
        """Changes when a record is written or removed."""
        said = [f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in self._records()]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()[:24]

    def tidy(self) -> None:
        """Clear away what a process that was killed left half written."""
        sweep(self.folder)

    def _records(self) -> list[tuple[str, os.stat_result]]:
        try:
            with os.scandir(self.folder) as entries:
                found = [
                    (entry.name.partition(".")[0], entry) for entry in entries if entry.name.endswith(".safetensors")
                ]
                return sorted((name, entry.stat()) for name, entry in found if _DIGEST.fullmatch(name))
        except OSError:
            return []


def without_key(settings: str) -> str:
    """The key of the pictures without a LoRA."""
    return f"{_WITHOUT}{settings}"


@dataclass(frozen=True)
class PreviewVectors:
    """Directions of one space: row i of ``matrix`` (n, d), unit, belongs to the content ``hashes[i]``. ``id`` changes
    with them; ``tower`` is what embedded the pictures."""

    id: str
    tower: str
    hashes: tuple[str, ...]
    matrix: np.ndarray


def preview_vectors(shelf: PreviewShelf, tower: str | None = None) -> PreviewVectors:
    """Directions of all previews that ``tower`` embedded (None: the tower that most have, a CLIP before latents).

    Previews of other settings are left out: they cannot be compared. LoRAs that change nothing have no direction.
    """
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for key in shelf.rendered():
        record = shelf.record(key)
        for space, rows in record.vectors.items() if record else ():
            direction = difference(rows).direction
            if direction.any():
                kind = record.towers.get(space, ""), record.settings
                found.setdefault(kind, {})[key] = direction.astype(np.float32)
    wanted = [kind for kind in found if tower is None or kind[0] == tower]
    if not wanted:
        return PreviewVectors(shelf.state, tower or "", (), np.zeros((0, 1), np.float32))
    best = max(wanted, key=lambda kind: (len(found[kind]), not kind[0].startswith(LATENTS), kind))
    width = {len(row) for row in found[best].values()}
    if len(width) != 1:
        return PreviewVectors(shelf.state, best[0], (), np.zeros((0, 1), np.float32))
    said = f"{shelf.state} {best}"
    return PreviewVectors(
        hashlib.sha256(said.encode()).hexdigest()[:24],
        best[0],
        tuple(found[best]),
        np.stack(list(found[best].values())),
    )


def _stem(key: str, number: int) -> str:
    return key if number == 1 else f"{key}-{number}"


def _encoded(picture: Image.Image) -> tuple[bytes, str]:
    small = picture.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    end = SUFFIXES[0] if features.check("webp") else SUFFIXES[1]
    stream = io.BytesIO()
    small.save(stream, format="WEBP" if end == ".webp" else "PNG", **({"quality": QUALITY} if end == ".webp" else {}))
    return stream.getvalue(), end


def _read(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Record | None:
    """None for what :meth:`PreviewShelf.put` did not write."""
    if metadata.get("format") != FORMAT or not all(space in (LATENTS, CLIP) for space in tensors):
        return None
    rows = {space: value for space, value in tensors.items() if value.ndim == 2 and value.dtype == torch.float32}
    if len(rows) != len(tensors) or not all(value.numel() and value.isfinite().all() for value in rows.values()):
        return None
    vectors = {space: value.numpy() for space, value in rows.items()}
    towers = {space: metadata.get(f"tower.{space}", "") for space in vectors}
    return Record(metadata.get("settings", ""), vectors, towers, metadata.get("name", ""))
