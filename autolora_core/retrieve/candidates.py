"""Which files of a library may be chosen for a base model."""

from __future__ import annotations

from .view import EntryLike, LibraryView

USABLE_KINDS = frozenset({"lora", "text_encoder_only"})
# Text encoder → the bases that have it. A file that changes nothing else does not say which of them it was made for;
# the language models of newer bases share their layers' names, so for those it cannot be told at all.
BASES_OF_ENCODER = {
    "clip_l": frozenset({"sd15", "sdxl", "sd3", "flux", "hunyuan_video"}),
    "clip_g": frozenset({"sdxl", "sd3"}),
    "clip_h": frozenset({"sd2"}),
    "t5xxl": frozenset({"sd3", "flux", "chroma", "pixart", "ltxv"}),
}


def candidates(view: LibraryView, family: str) -> list[EntryLike]:
    """Files of ``family``, and files for its text encoders alone; those whose content is known."""
    return [entry for entry in view.entries() if entry.hash and is_for(entry, family)]


def is_for(entry: EntryLike, family: str) -> bool:
    """Whether a file may be chosen for a base; without regard to whether its content is known."""
    if entry.kind not in USABLE_KINDS:
        return False
    return entry.family == family or (is_for_shared_encoders(entry) and _has_encoders(family, entry.halves))


def is_for_shared_encoders(entry: EntryLike) -> bool:
    """It changes text encoders only, and does not say for which base."""
    return entry.kind == "text_encoder_only" and entry.family == "unknown"


def _has_encoders(family: str, halves: tuple[str, ...]) -> bool:
    return bool(halves) and all(family in BASES_OF_ENCODER.get(half, ()) for half in halves)
