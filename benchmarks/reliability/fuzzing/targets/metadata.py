"""What words say of a LoRA: the header's metadata and every sidecar. Hostile words come out as short plain text."""

from __future__ import annotations

import json
import random
from pathlib import Path

from autolora_core.library import metadata as reader

from .. import lora_seeds, mutate
from ..memory import MIB
from ..oracle import Wrong

CASES = 8_000
NAME = "otter.safetensors"
CIVITAI = {
    "model": {"name": "Otter", "tags": ["animal", "river"], "description": "<p>An <b>otter</b>.</p>"},
    "trainedWords": ["ottr", "wet fur"],
    "baseModel": "SD 1.5",
    "description": "v2",
}
SIDECARS = {
    ".metadata.json": {
        "model_name": "Otter",
        "base_model": "SDXL",
        "tags": ["a"],
        "modelDescription": "x",
        "civitai": CIVITAI,
    },
    ".civitai.info": CIVITAI,
    ".json": {"activation text": "ottr, fur", "description": "An otter", "sd version": "SDXL", "notes": "n"},
    ".txt": "An otter by a river.",
    "": {
        "name": "Otter",
        "raw": {"civitai": CIVITAI},
        "userTags": ["u"],
        "userNote": "n",
        "baseModel": "SDXL",
        "trainedWords": [{"word": "ottr", "civitai": True}, {"word": "fur", "user": True}],
    },
}
FILES = {
    NAME.removesuffix(".safetensors") + end if end else NAME + ".rgthree-info.json": said
    for end, said in SIDECARS.items()
}


def bound(size: int) -> int:
    return 16 * MIB + 40 * size


def _fresh() -> dict:
    return {"header": lora_seeds.METADATA, "files": FILES}


def seeds(folder: Path) -> list[bytes]:
    return [mutate.dumped(_fresh())]


def make(rng: random.Random, parent: bytes) -> bytes:
    """``files``: name → what stands in it, as JSON or, where it is a text, as it is; ``raw`` breaks one as bytes."""
    document = mutate.loaded(parent) if rng.random() < 0.6 else None
    document = document if isinstance(document, dict) and isinstance(document.get("files"), dict) else _fresh()
    document = mutate.changed(rng, document)
    if isinstance(document, dict) and isinstance(document.get("header"), dict):
        for key, entry in list(document["header"].items()):
            inner = (
                mutate.loaded(entry.encode("utf-8", "replace"))
                if isinstance(entry, str) and entry[:1] in "[{"
                else None
            )
            if inner and rng.random() < 0.3:
                document["header"][key] = json.dumps(mutate.changed(rng, inner))
    if isinstance(document, dict) and rng.random() < 0.3:
        name = rng.choice(list(FILES))
        broken = rng.choice(
            (
                lambda: mutate.bytes_of(rng, mutate.dumped(FILES[name])),
                lambda: b"[" * 100_000,
                lambda: b"\xff\xfe" * 50,
                lambda: b'{"a":' * 20_000,
                lambda: b'{"tags":' + b"9" * 6000 + b"}",
                lambda: b'"' + b"<" * 400_000 + b'"',
                lambda: b'{"description":"' + b"&lt;" * 50_000 + b'"}',
            )
        )()
        document["raw"] = {name: broken.hex()}
    made = mutate.dumped(document)
    return made if len(made) <= mutate.MOST_BYTES else mutate.dumped(_fresh())


def run(data: bytes, folder: Path) -> None:
    document = mutate.loaded(data)
    document = document if isinstance(document, dict) else {}
    header = {
        k: v for k, v in _table(document.get("header")).items() if isinstance(v, str)
    }  # as read_header gives them
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    written = {
        name: said.encode("utf-8", "replace") if isinstance(said, str) else mutate.dumped(said)
        for name, said in _table(document.get("files")).items()
        if name in FILES
    }
    for name, broken in _table(document.get("raw")).items():
        if name in FILES:
            written[name] = mutate.unhex(broken)
    for name, content in written.items():
        (folder / name).write_bytes(content[: len(content) // 2 * 2] if name.endswith(".txt") else content)
    reading = reader.read_words(str(folder / NAME), header, [*written, NAME, "../x", "otter.png"])
    _check(reading)


def _table(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _check(reading: reader.Reading) -> None:
    words = reading.text
    texts = [words.title, words.description, reading.base_model, reading.autov3, *words.tags, *words.triggers]
    if not all(isinstance(one, str) for one in texts):
        raise Wrong("a word that is no text")
    if len(words.tags) > reader.MAX_TAGS or len(words.triggers) > reader.MAX_TRIGGERS:
        raise Wrong("more words than there may be")
    if any(len(one) > reader.MAX_WORD for one in (words.title, *words.tags, *words.triggers)):
        raise Wrong("a word that is longer than words may be")
    if len(words.description) > reader.MAX_DESCRIPTION or len(reading.base_model) > 20 * reader.MAX_WORD:
        raise Wrong("a description that is longer than they may be")
    for one in texts:
        one.encode("utf-8")
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in one):
            raise Wrong(f"a control character in {one!r}")
    words.captions  # noqa: B018 - must not fail either
