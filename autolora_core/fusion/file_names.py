"""Which file of the loras list a name means: other packs write names without folder or ending, or of another system."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin")


def spelled(name: str) -> str:
    """The name with ``/`` between its folders, whatever system wrote it, and letters with marks as one sign: names from
    a Mac may keep the two apart."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").strip("/"))


def without_ending(name: str) -> str:
    """The name without the ending of a model file; a dot within a name (``style-v1.0``) is no ending."""
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def find_names(asked: str, known: Sequence[str], whole: bool = False) -> list[str]:
    """The entries of ``known`` that ``asked`` may mean, by the first of these rules that finds any: the name itself
    (separators aside), the name without ending, the same in other case, the end of a longer path, the same so.

    Where a .safetensors file is among them, files of other endings are left out. ``whole``: by the first two rules.
    """
    wanted = spelled(asked)
    if not wanted:
        return []
    if exact := [name for name in known if spelled(name) == wanted]:
        return exact
    for same in (_same, _same_folded) if whole else (_same, _same_folded, _ends, _ends_folded):
        found = [name for name in known if same(spelled(name), wanted)]
        if found:
            return [name for name in found if name.lower().endswith(ENDINGS[0])] or found
    return []


def namesakes(asked: str, known: Sequence[str]) -> list[str]:
    """Files of the same name in other folders than ``asked`` says: not what was asked for, but worth telling."""
    return find_names(spelled(asked).rpartition("/")[2], known)


def short_names(names: Iterable[str], beside: Iterable[str] = ()) -> dict[str, str]:
    """Name → its last part without ending, as ``<lora:…>`` has it; with folders where two of ``names``, or one of them
    and another of ``beside`` (all files there are), would be the same."""
    whole = {name: without_ending(spelled(name)) for name in names}
    files = {*whole.values(), *(without_ending(spelled(name)) for name in beside)}
    count = Counter(file.rpartition("/")[2] for file in files)
    last = {name: file.rpartition("/")[2] for name, file in whole.items()}
    return {name: whole[name] if count[last[name]] > 1 else last[name] for name in whole}


def _same(name: str, wanted: str) -> bool:
    return wanted in (name, without_ending(name))


def _same_folded(name: str, wanted: str) -> bool:
    return _same(name.casefold(), wanted.casefold())


def _ends(name: str, wanted: str) -> bool:
    return name.endswith("/" + wanted) or without_ending(name).endswith("/" + wanted)


def _ends_folded(name: str, wanted: str) -> bool:
    return _ends(name.casefold(), wanted.casefold())
