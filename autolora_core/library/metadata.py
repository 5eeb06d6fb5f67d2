"""What words say about a LoRA: its header's ``__metadata__``, the sidecar files beside it, its own name.

Everything is read with a bound, nothing is trusted to have the expected type, and broken JSON is a note in
``problems``, never a failure. Nothing is written. Sources, best first: Lora-Manager's ``<stem>.metadata.json``,
``<stem>.civitai.info``, ``<file>.rgthree-info.json``, AUTOMATIC1111's ``<stem>.json``, ``<stem>.txt``, the header, the
file name.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..portable import openable
from .entries import EntryText
from .names import meaningful_name

MAX_SIDECAR_BYTES = 4 << 20
MAX_TEXT_BYTES = 64 << 10
MAX_TAGS, MAX_TRIGGERS, MAX_WORD, MAX_DESCRIPTION = 40, 16, 200, 1000
PREVIEW_SUFFIXES = tuple(f"{middle}.{end}" for middle in (".preview", "") for end in ("png", "jpg", "jpeg", "webp"))
# Tags so common in booru captions that standing under every picture does not make them a trigger.
_GENERIC_TAGS = frozenset(
    (
        "1girl,1boy,solo,no humans,simple background,white background,looking at viewer,highres,absurdres,best quality,"
        "masterpiece,smile,blush,long hair,short hair,breasts,upper body"
    ).split(",")
)
# What moves a cursor, or shows a text in another order than it has: never part of a word.
_INVISIBLE = {code: " " for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_EMPTY_SHA = "e3b0c442"  # SHA-256 of nothing: written by a trainer that hashed an empty buffer
_TRIGGER_COMMENT = re.compile(r"trigger(?:\s+words?)?\s*(?:is|are|:|=)+\s*(.+)", re.IGNORECASE)


@dataclass
class Words:
    """What one source says. ``source`` is its short name, as shown in reports."""

    source: str
    title: str = ""
    tags: list[str] = field(default_factory=list)
    triggers: list[str] = field(default_factory=list)
    description: str = ""
    base_model: str = ""


@dataclass
class Reading:
    """All sources of one file, merged."""

    text: EntryText
    base_model: str
    autov3: str
    preview: str
    problems: list[str]


def _plain(value: Any, limit: int = MAX_WORD) -> str:
    """Any JSON value → one line of plain text (markup removed), at most ``limit`` characters."""
    if not isinstance(value, str):
        return ""
    if len(value) <= limit and value.isascii() and value.isprintable() and "<" not in value and "&" not in value:
        return " ".join(value.split()).strip(" ,")  # nothing of what follows: most tags, of which a file has hundreds
    value = html.unescape(re.sub(r"<[^>]{0,2000}>", " ", value[: 8 * limit]))
    value = value.encode("utf-8", "replace").decode("utf-8")  # JSON can smuggle in lone surrogates
    return " ".join(value.translate(_INVISIBLE).split())[:limit].strip(" ,")


def _words(value: Any, limit: int = MAX_TAGS) -> list[str]:
    """A list of strings, or one comma-separated string → plain words."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        return []
    return [word for word in (_plain(item) for item in value[: 4 * limit]) if word][:limit]


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _json(text: str | bytes | None) -> Any:
    """Parsed JSON; raises ValueError for anything broken, deep nesting included."""
    try:
        return json.loads(text or "null")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def tag_counts(metadata: Mapping[str, str]) -> Counter:
    """Summed ``ss_tag_frequency`` (training folder → tag → count). Raises ValueError when it is not JSON."""
    counts: Counter = Counter()
    for folder in _dict(_json(metadata.get("ss_tag_frequency"))).values():
        for tag, count in _dict(folder).items():
            if isinstance(count, int) and (tag := _plain(tag)):
                counts[tag] += count
    return counts


def _constant_tags(metadata: Mapping[str, str], counts: Counter) -> list[str]:
    """Tags under at least 95 % of the training pictures and not generic: what trainers use as trigger words."""
    folders = _dict(_json(metadata.get("ss_dataset_dirs"))).values()
    pictures = sum(n for n in (_dict(folder).get("img_count") for folder in folders) if isinstance(n, int))
    if pictures < 4:
        return []
    return [tag for tag, count in counts.most_common(8) if count >= 0.95 * pictures and tag not in _GENERIC_TAGS][:2]


def header_words(metadata: Mapping[str, str]) -> tuple[Words, list[str]]:
    """The header's ``__metadata__`` → what it says, and notes on values that could not be read."""
    words, problems, counts = Words("header"), [], Counter()
    title = _plain(metadata.get("modelspec.title"))
    output = _plain(metadata.get("ss_output_name"))
    if meaningful_name(title):
        words.title = title
    elif meaningful_name(output):
        words.title = meaningful_name(output) or ""
    words.description = _plain(metadata.get("modelspec.description"), MAX_DESCRIPTION)
    words.triggers = _words(metadata.get("modelspec.trigger_phrase"), MAX_TRIGGERS)
    comment = _TRIGGER_COMMENT.search(_plain(metadata.get("ss_training_comment"), MAX_DESCRIPTION))
    if comment:
        words.triggers += _words(comment.group(1), MAX_TRIGGERS)
    words.tags = _words(metadata.get("modelspec.tags"))
    checkpoint = re.split(r"[\\/]", metadata.get("ss_sd_model_name", ""))[-1]  # some trainers write the whole path
    stated = (checkpoint, metadata.get("ss_base_model_version"), metadata.get("modelspec.architecture"))
    words.base_model = "; ".join(dict.fromkeys(text for text in map(_plain, stated) if text))
    try:
        counts = tag_counts(metadata)
        if not words.triggers:
            words.triggers = _constant_tags(metadata, counts)
    except ValueError as error:
        problems.append(f"header metadata cannot be read ({str(error)[:80]})")
    words.tags += [tag.replace("\\", "") for tag, _ in counts.most_common(MAX_TAGS)]
    return words, problems


def _civitai_version(data: dict, source: str) -> Words:
    """Civitai's model-version record, as stored by several tools."""
    model = _dict(data.get("model"))
    title = _plain(model.get("name"))
    return Words(
        source,
        title,
        _words(model.get("tags")) or _words(data.get("tags")),
        _words(data.get("trainedWords"), MAX_TRIGGERS) if isinstance(data.get("trainedWords"), list) else [],
        _plain(model.get("description"), MAX_DESCRIPTION) or _plain(data.get("description"), MAX_DESCRIPTION),
        _plain(data.get("baseModel")),
    )


def _lora_manager(data: dict) -> Words:
    words = _civitai_version(_dict(data.get("civitai")), "metadata.json")
    words.title = _plain(data.get("model_name")) or words.title
    words.tags = _words(data.get("tags")) or words.tags
    notes = (data.get("modelDescription"), data.get("notes"))
    words.description = next((text for text in (_plain(n, MAX_DESCRIPTION) for n in notes) if text), words.description)
    base = _plain(data.get("base_model"))
    words.base_model = base if base.lower() not in ("", "unknown") else words.base_model
    return words


def _rgthree(data: dict) -> Words:
    words = _civitai_version(_dict(_dict(data.get("raw")).get("civitai")), "rgthree-info.json")
    words.title = _plain(data.get("name")) or words.title
    trained = data.get("trainedWords")
    # rgthree also lists every tag of the training set there; only those Civitai or the user named are triggers.
    chosen = [d for d in map(_dict, trained if isinstance(trained, list) else []) if d.get("civitai") or d.get("user")]
    words.triggers = _words([d.get("word") for d in chosen], MAX_TRIGGERS) or words.triggers
    words.tags = _words(data.get("userTags")) + words.tags
    words.description = _plain(data.get("userNote"), MAX_DESCRIPTION) or words.description
    words.base_model = _plain(data.get("baseModel")) or words.base_model
    return words


def _automatic1111(data: dict) -> Words:
    return Words(
        "json",
        triggers=_words(data.get("activation text"), MAX_TRIGGERS),
        description=_plain(data.get("description"), MAX_DESCRIPTION) or _plain(data.get("notes"), MAX_DESCRIPTION),
        base_model=_plain(data.get("sd version")),
    )


def _civitai_info(data: dict) -> Words:
    return _civitai_version(data, "civitai.info")


# Ending to put after the stem (or after the whole file name) → reader. Best source first.
_JSON_SIDECARS: tuple[tuple[str, bool, Callable[[dict], Words]], ...] = (
    (".metadata.json", False, _lora_manager),
    (".civitai.info", False, _civitai_info),
    (".rgthree-info.json", True, _rgthree),
    (".json", False, _automatic1111),
)


# What a describing file's name has behind the LoRA's, with and without the LoRA's own suffix (previews last).
WHOLE_ENDINGS = tuple(ending for ending, whole, _ in _JSON_SIDECARS if whole)
STEM_ENDINGS = (*(ending for ending, whole, _ in _JSON_SIDECARS if not whole), ".txt", *PREVIEW_SUFFIXES)


def sidecar_names(file_name: str) -> list[str]:
    """Names, in the same folder, of everything that may describe ``file_name`` (previews last)."""
    stem = os.path.splitext(file_name)[0]
    names = [(file_name if whole else stem) + ending for ending, whole, _ in _JSON_SIDECARS]
    return [*names, stem + ".txt", *(stem + suffix for suffix in PREVIEW_SUFFIXES)]


def _read_bounded(path: str, limit: int) -> bytes:
    with open(openable(path), "rb") as handle:
        data = handle.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return data


def sidecar_words(path: str, present: Iterable[str]) -> tuple[list[Words], list[str]]:
    """Read the sidecars of ``path`` whose names are in ``present``; returns what they say, and problem notes."""
    folder, file_name = os.path.split(path)
    stem, found, problems, present = os.path.splitext(file_name)[0], [], [], set(present)
    for ending, whole, reader in _JSON_SIDECARS:
        name = (file_name if whole else stem) + ending
        if name not in present:
            continue
        try:
            data = _json(_read_bounded(os.path.join(folder, name), MAX_SIDECAR_BYTES))
            found.append(reader(_dict(data)))
        except (OSError, ValueError) as error:
            problems.append(f"sidecar {name} cannot be read ({str(error)[:80]})")
    if stem + ".txt" in present:
        try:
            text = _read_bounded(os.path.join(folder, stem + ".txt"), MAX_TEXT_BYTES).decode("utf-8", "replace")
            found.append(Words("txt", description=_plain(text, MAX_DESCRIPTION)))
        except (OSError, ValueError) as error:
            problems.append(f"sidecar {stem}.txt cannot be read ({str(error)[:80]})")
    return found, problems


def _unique(words: Iterable[str], limit: int) -> tuple[str, ...]:
    kept: dict[str, str] = {}
    for word in words:
        kept.setdefault(word.lower(), word)
    return tuple(list(kept.values())[:limit])


def merge(sources: list[Words]) -> EntryText:
    """Sources, best first → one text: first title and description that is there, triggers of the first source that has
    any, tags of all."""
    used = [s.source for s in sources if s.title or s.tags or s.triggers or s.description]
    return EntryText(
        next((s.title for s in sources if s.title), ""),
        _unique((tag for s in sources for tag in s.tags), MAX_TAGS),
        _unique(next((s.triggers for s in sources if s.triggers), []), MAX_TRIGGERS),
        next((s.description for s in sources if s.description), ""),
        ", ".join(used),
    )


def autov3(metadata: Mapping[str, str]) -> str:
    """Civitai's AutoV3: 12 digits of the hash the trainer wrote over the tensors, "" when absent or of empty data."""
    for key in ("sshs_model_hash", "modelspec.hash_sha256"):
        value = metadata.get(key, "").lower().removeprefix("0x")
        if re.fullmatch(r"[0-9a-f]{12,64}", value) and not value.startswith(_EMPTY_SHA):
            return value[:12]
    return ""


def read_words(path: str, metadata: Mapping[str, str], present: Iterable[str]) -> Reading:
    """Everything words say about the file ``path``.

    ``metadata`` is its header's ``__metadata__`` (empty when unreadable), ``present`` the names of the files beside it.
    """
    present = set(present)
    sources, problems = sidecar_words(path, present)
    from_header, notes = header_words(metadata)
    stem = os.path.splitext(os.path.basename(path))[0]
    sources += [from_header, Words("file name", title=meaningful_name(stem) or "")]
    preview = next((stem + suffix for suffix in PREVIEW_SUFFIXES if stem + suffix in present), "")
    return Reading(
        merge(sources),
        "; ".join(dict.fromkeys(s.base_model for s in sources if s.base_model)),
        autov3(metadata),
        os.path.join(os.path.dirname(path), preview) if preview else "",
        problems + notes,
    )
