"""Where a trained encoder is saved, whose file may be written over, and when it says it was trained."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from ..errors import FileFormatError, LibraryError
from ..library.encoders import trained_file, trained_for
from ..portable import file_stem


def encoder_file(target: Path, family: str, library: str, name: str = "", several: bool = False) -> Path:
    """Where an encoder is saved: ``<family>-<library>-encoder.safetensors``, or after ``name``."""
    stem = f"{family}-{library}" if not name.strip() else f"{name.strip()}-{family}" if several else name.strip()
    stem = file_stem(stem.removesuffix(".safetensors").removesuffix("-encoder"))
    if not stem:
        raise LibraryError("the name of an encoder needs letters or digits", key=name, fix="choose another name")
    return target / f"{stem}-encoder.safetensors"


def check_own(path: Path, library: str, family: str) -> None:
    """LibraryError when ``path`` is a file that was not trained for this very library and family."""
    if not path.exists():
        return
    try:
        said = trained_for(path)
    except FileFormatError:
        said = None
    if said is None or (said.library, said.family) != (library, family):
        raise LibraryError(f"there is a file of this name that was not trained for {family} of the library {library}",
                           path=path, fix="choose another name for the encoder, or move that file away")  # fmt: skip


def when_trained(folders: Sequence[str | Path], library: str, family: str) -> str:
    """The time, UTC, to the second; later than that of any encoder for this library and family in ``folders``, or what
    is trained now would not be the newest where the clock was set back."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    last = trained_file(folders, library, family)
    if last is not None:
        try:
            now = max(now, datetime.datetime.fromisoformat(trained_for(last).when) + datetime.timedelta(seconds=1))
        except (ValueError, TypeError):
            pass  # it does not say when: text sorts before every time
    return now.isoformat(timespec="seconds")
