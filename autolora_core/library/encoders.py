"""Where a library's fitted encoders are kept, found again, checked and forgotten."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..encode.encoder import WeightEncoder
from ..encode.encoder_files import load_encoder_file
from ..errors import EncoderMismatchError, FileFormatError
from ..lora.header import read_header
from .store import Store

log = logging.getLogger(__name__)
MAX_LOADED = 8
# Metadata of an encoder file that was trained for one library: its folder's name, and when (UTC, ISO).
LIBRARY_KEY, WHEN_KEY = "library", "trained"
# How the id of a text tower begins that is a CLIP of ComfyUI (``nodes.clip_tower``).
OF_CLIP = "comfy-"
_loaded: dict[str, WeightEncoder] = {}


def drop_old(store: Store, family: str, tower_id: str) -> list[str]:
    """Forget all but the two newest encoders of a family and tower: a reader may still be using the one before."""
    rows = store.db.execute(
        "SELECT id FROM encoders WHERE family = ? AND tower_id = ? ORDER BY current DESC, rowid DESC",
        (family, tower_id),
    ).fetchall()
    old = [row[0] for row in rows[2:]]
    for encoder_id in old:
        store.db.execute("DELETE FROM vectors WHERE encoder_id = ?", (encoder_id,))
        store.db.execute("DELETE FROM encoders WHERE id = ?", (encoder_id,))
    return old


def encoder_path(folder: Path, encoder_id: str) -> Path:
    """Where an encoder's file lies in a library folder."""
    return folder / f"encoder-{encoder_id}.safetensors"


def remember(encoder: WeightEncoder) -> None:
    """Keep an encoder in memory; ids are hashes of the contents, so it never goes stale."""
    while len(_loaded) >= MAX_LOADED:
        _loaded.pop(next(iter(_loaded)))
    _loaded[encoder.id] = encoder


def load_encoder(store: Store, encoder_id: str) -> WeightEncoder | None:
    """An encoder of this library; None when its file is absent or damaged (the next fit makes it again)."""
    if encoder_id not in _loaded:
        try:
            found = load_encoder_file(encoder_path(store.folder, encoder_id))
        except FileFormatError as error:
            log.warning("%s", error)
            return None
        if found.id != encoder_id:
            log.warning("the file of encoder %s holds %s; fitting again", encoder_id, found.id)
            return None
        remember(found)
    return _loaded[encoder_id]


def known_towers(store: Store, family: str) -> set[str]:
    """Ids of the text towers that a family has an encoder for."""
    rows = store.db.execute("SELECT DISTINCT tower_id FROM encoders WHERE family = ? AND current = 1", (family,))
    return {row[0] for row in rows}


def current_encoder(store: Store, family: str, tower_id: str | None = None) -> WeightEncoder | None:
    """The family's current encoder, for this text tower when given; None when none was fitted."""
    row = store.db.execute(
        "SELECT id FROM encoders WHERE family = ? AND current = 1 AND (? IS NULL OR tower_id = ?)"
        " ORDER BY rowid DESC LIMIT 1",
        (family, tower_id, tower_id),
    ).fetchone()
    return load_encoder(store, row[0]) if row else None


def check_encoder(store: Store, family: str, encoder_id: str) -> None:
    """Raise EncoderMismatchError unless ``encoder_id`` is an encoder of ``family`` in this library."""
    row = store.db.execute("SELECT family FROM encoders WHERE id = ?", (encoder_id,)).fetchone()
    if row is None or row[0] != family:
        what = f"an encoder of {row[0]}" if row else "not an encoder of this library"
        raise EncoderMismatchError(
            f"the encoder {encoder_id} is {what}, not of {family}",
            path=store.path,
            key=encoder_id,
            fix="run Encode LoRA Library again",
        )


def find_encoders(folders: Iterable[str | os.PathLike], library: str | None = None) -> dict[str, WeightEncoder]:
    """Family → the encoder to use of those lying in ``folders``; files that are no encoder are passed over.

    One that was trained for ``library`` (the name of its folder) comes before all others, the newest first; then the
    first folder, and in a folder the first name, wins. What was trained for another library is not used.
    """
    return {family: encoder for family, (_, _, encoder) in _found(folders, library).items()}


def trained_file(folders: Iterable[str | os.PathLike], library: str, family: str) -> Path | None:
    """The file trained for ``library`` and ``family`` that :func:`find_encoders` takes, None when there is none."""
    found = _found(folders, library).get(family)
    return found[1] if found is not None and found[0][0] else None


def _found(folders: Iterable[str | os.PathLike], library: str | None) -> dict[str, tuple[tuple, Path, WeightEncoder]]:
    """Family → the best ``(rank, file, encoder)``; a rank begins with whether it was trained for ``library``."""
    found: dict[str, tuple[tuple, Path, WeightEncoder]] = {}
    for place, folder in enumerate(folders):
        for path in sorted(Path(folder).glob("*encoder*.safetensors")):
            try:
                said = trained_for(path)
                if said.library not in (None, library):
                    continue
                encoder = load_encoder_file(path)
            except FileFormatError as error:
                log.info("not an encoder: %s", error)
                continue
            # ISO times sort as text; newest first means the largest comes last.
            rank = (said.library is not None, said.when if said.library else "", -place)
            if encoder.family not in found or rank > found[encoder.family][0]:
                found[encoder.family] = rank, path, encoder
    return found


@dataclass(frozen=True)
class TrainedFor:
    """What an encoder file says of its making: ``library`` it was trained for (None: for anybody's), ``when``, and the
    ``family`` it reads ("" when it does not say)."""

    library: str | None = None
    when: str = ""
    family: str = ""


def trained_for(path: str | os.PathLike) -> TrainedFor:
    """Read from the file's header. :class:`FileFormatError` when there is none."""
    metadata = read_header(path).metadata
    try:
        family = str(json.loads(metadata.get("schema", "{}"))["family"])
    except (ValueError, KeyError, TypeError, RecursionError):
        family = ""  # no encoder, or a damaged one: reading it whole says so
    return TrainedFor(metadata.get(LIBRARY_KEY), metadata.get(WHEN_KEY, ""), family)


def encoders_state(folders: Iterable[str | os.PathLike]) -> str:
    """Changes whenever :func:`find_encoders` might find something else: names, sizes and times; nothing is read."""
    files = [path for folder in folders for path in sorted(Path(folder).glob("*encoder*.safetensors"))]
    return repr([(str(path), status.st_size, status.st_mtime_ns) for path in files if (status := path.stat())])
