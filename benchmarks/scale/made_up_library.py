"""A library of a hundred thousand made-up LoRAs, written straight into its store: no file of them exists.

As collectors' libraries are: two thirds of the files say what they are (a title, a row of tags and single tags from one
vocabulary, a trigger word, now and then a description), the others have nothing but weights. Text vectors are those of
:mod:`.made_up` in the store of MiniLM's; the vocabulary's own, and whatever is asked, are really MiniLM's.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autolora_core.encode.encoder import RidgeEncoder
from autolora_core.encode.features import FeatureSchema, ModuleFeatures, size_for
from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.towers import TextTower
from autolora_core.library.content import Content, store_content
from autolora_core.library.entries import EntryText
from autolora_core.library.grid import WIDTH, write_rows
from autolora_core.library.index import Library
from autolora_core.library.sketches import sketch_id, store_sketch
from autolora_core.library.store import now
from autolora_core.library.texts import FILE_NAME, sealed
from autolora_core.library.vectors import store_vectors
from autolora_core.retrieve.sayings import phrases_of
from benchmarks.scale.made_up import BLOCK, Parts, manners, subjects, unit

FAMILY, ROOT = "sdxl", "/loras"
SPEAKING, DESCRIBED, STYLES = 2 / 3, 0.15, 0.2
PEOPLE = ("anna", "bo", "cleo", "dan", "eva", "finn", "gus", "hana", "ivo", "juno")
PROMPTS = 400


@dataclass(frozen=True)
class Facts:
    """What a made-up LoRA shows: ``thing`` (n,) and ``manner`` (n,), indices; ``seed`` of its words."""

    thing: np.ndarray
    manner: np.ndarray
    seed: int

    @classmethod
    def drawn(cls, count: int, seed: int = 0) -> Facts:
        """Popular things have many LoRAs (Zipf), as they do."""
        rng = np.random.default_rng(seed)
        share = 1 / (np.arange(len(subjects())) + 20.0)
        thing = rng.choice(len(subjects()), size=count, p=share / share.sum())
        return cls(rng.permutation(len(subjects()))[thing], rng.integers(len(manners()), size=count), seed)

    def words(self, i: int) -> EntryText:
        """What LoRA ``i`` says of itself; nothing for one in three."""
        rng = np.random.default_rng([self.seed, i])
        if rng.random() > SPEAKING:
            return EntryText()
        thing, manner = subjects()[self.thing[i]], manners()[self.manner[i]]
        style = rng.random() < STYLES
        person = PEOPLE[rng.integers(len(PEOPLE))]
        title = [f"{manner} by {person}" if style else thing, f"{thing} {manner} v{rng.integers(1, 9)}",
                 f"{person}'s {thing} {rng.integers(1, 99)}"][rng.integers(3)]  # fmt: skip
        others = [subjects()[k] for k in rng.integers(len(subjects()), size=rng.integers(0, 3))]
        tags = tuple(dict.fromkeys([*([manner, "style"] if style else [thing, "character"]), *others]))
        tags = tags if rng.random() < 0.6 else ()
        trigger = ("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5)),) if rng.random() < 0.5 else ()
        said = f"A {thing} in {manner} style, trained on {rng.integers(10, 90)} pictures by {person}."
        return EntryText(title, tags, trigger, said if rng.random() < DESCRIBED else "", "made up")


def prompts(count: int = PROMPTS, seed: int = 5) -> list[str]:
    """What people ask: a thing, a thing in a manner, two things with a place, a row of words as models are fed."""
    rng, out = np.random.default_rng(seed), []
    places = ("at dusk", "in a forest", "on a table", "by the sea")
    for i in range(count):
        one, two = (subjects()[k] for k in rng.integers(len(subjects()), size=2))
        manner, place = manners()[rng.integers(len(manners()))], places[rng.integers(4)]
        out.append(
            [f"a {one}", f"a {one} in {manner} style", f"a {one} and a {two} {place}",
             f"masterpiece, best quality, {one}, {two}, {manner}, highly detailed"][i % 4]
        )  # fmt: skip
    return out


def build(folder: Path, tower: TextTower, count: int) -> RidgeEncoder:
    """Fill a new library of ``count`` LoRAs; returns its encoder."""
    parts, facts = Parts.of(tower), Facts.drawn(count)
    with Library.open(folder) as library:
        store, encoder = library.store, encoder_of(tower)
        texts: dict[str, np.ndarray] = {}
        encoder.save(folder / f"encoder-{encoder.id}.safetensors")
        with store.transaction() as db:
            said = json.dumps({"found_top5": 0.9, "captioned": count // 2, "asks": 200})
            row = (encoder.id, FAMILY, "ridge", encoder.schema.id, tower.id, "made up", said, now())
            db.execute("INSERT INTO encoders VALUES (?,?,?,?,?,?,?,1,?)", row)
            for start in range(0, count, BLOCK // 10):
                for i, vector in _vectors(parts, facts, start, min(start + BLOCK // 10, count)):
                    digest, words = _hash(i), facts.words(i)
                    _store(store, digest, i, words)
                    store_vectors(store, encoder.id, encoder.schema.id, tower.id, [(digest, vector)], now())
            store.bump()
        _store_texts(library, tower, parts, facts, texts)
        write_rows(folder / f"grid-{sketch_id(FAMILY)}.safetensors", *_grid(count))
    return encoder


def _hash(i: int) -> str:
    return hashlib.sha256(b"%d" % i).hexdigest()


def _vectors(parts: Parts, facts: Facts, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    rng = np.random.default_rng([1, start])
    texts = parts.texts(rng, facts.thing[start:stop], facts.manner[start:stop])
    yield from enumerate(parts.vectors(rng, texts), start)


def _store(store, digest: str, i: int, words: EntryText) -> None:
    name = f"{i % 97:02d}/{digest[:12]}.safetensors".encode()
    store_content(store.db, Content(digest, 10**7, FAMILY, "", (), "lora", None, 16, ("model",), (), ()))
    store.db.execute(
        "INSERT INTO files (root, name, path, size, mtime_ns, hash, sidecars, text, base_model, autov3, preview,"
        " problems, date) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (ROOT.encode(), name, ROOT.encode() + b"/" + name, 10**7, 0, digest, "", json.dumps(words.to_json()), "", "",
         b"", "[]", now()),
    )  # fmt: skip
    store_sketch(store.db, digest, FAMILY, None, None)


def encoder_of(tower: TextTower) -> RidgeEncoder:
    """Any encoder of the tower: its vectors are made up, only its questions are its own."""
    rng, size = np.random.default_rng(3), size_for(FAMILY)
    files = [
        ModuleFeatures(("block",), rng.standard_normal((1, size.width)).astype(np.float32), np.zeros(1, np.float32), {})
        for _ in range(16)
    ]
    schema = FeatureSchema.learn(FAMILY, files, size)
    rows = np.stack([schema.assemble(file).vector for file in files])
    return RidgeEncoder.fit(schema, rows, list(subjects()[:16]), tower)


def _store_texts(library: Library, tower: TextTower, parts: Parts, facts: Facts, texts: dict) -> None:
    """A vector for everything that is said: real ones for the vocabulary, made up ones for what is composed of it."""
    known = dict(zip([*subjects(), *manners()], np.concatenate([parts.things, parts.manners]), strict=True))
    rng = np.random.default_rng(2)
    for entry in library.entries():
        mine = [known[word] for word in known.keys() & set(entry.text.tags)]
        title = max((word for word in known if word in entry.text.title), key=len, default=None)
        about = unit(sum(mine, known[title] if title else np.zeros(tower.dim, np.float32)))
        for phrase in phrases_of(entry, 0):
            if phrase.text not in texts and phrase.text not in known:
                near = about if phrase.field in ("title", "tags", "description") else 0 * about
                texts[phrase.text] = unit(near + 0.55 * parts.noise(rng, 1)[0])
    rows = {f"{tower.id}\n{text}": vector.tobytes() for text, vector in (known | texts).items()}
    library.text_tower(tower).encode(["style", "character"])  # makes the file
    with sqlite3.connect(library.folder / FILE_NAME) as db:
        whole = ((key, sealed(key, value)) for key, value in rows.items())
        db.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", whole)
    library.text_tower(tower).encode(list(GENERIC_PROMPTS))


def _grid(count: int) -> tuple[list[str], np.ndarray]:
    """Rows of weights in families of five that are near each other, as epochs and versions are."""
    rng = np.random.default_rng(4)
    heads = unit(rng.standard_normal((count // 5 + 1, WIDTH), np.float32))
    hashes = sorted(_hash(i) for i in range(count))
    rows = heads[np.arange(count) // 5] + 0.7 * unit(rng.standard_normal((count, WIDTH), np.float32))
    return hashes, rows
