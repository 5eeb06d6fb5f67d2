"""Proves that what LoRAs do to pictures finds those that nobody described, by either way to words; that it is bounded
by how often it is right, and that without it nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.towers import LexicalTower
from autolora_core.previews.shelf import PreviewVectors
from autolora_core.retrieve import finalists
from autolora_core.retrieve.picture_part import LEAST_TAUGHT, PictureSource
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.selection import Selection
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText

TOWER = LexicalTower()
# What a ridge is to carry over must have something in common with what it was taught.
THINGS = (
    "red apple", "green apple", "red castle", "green castle", "blue apple", "blue castle", "red robot", "green robot",
    "blue robot", "red tree", "green tree", "blue tree", "grey apple", "grey castle", "grey robot",
)  # fmt: skip
SILENT = "grey tree"
USUAL = TOWER.encode(list(GENERIC_PROMPTS)).mean(axis=0)
MAP = np.random.default_rng(4).normal(size=(TOWER.dim, TOWER.dim)) / TOWER.dim**0.5


def library(things=THINGS, silent=(SILENT,), **more) -> MemoryView:
    held = [ViewEntry(f"{n}.bin", thing, text=ViewText(thing)) for n, thing in enumerate(things)]
    held += [ViewEntry(f"a{n}f3", thing) for n, thing in enumerate(silent)]
    return MemoryView(held, **more)


def drawn(things=(*THINGS, SILENT), through=MAP, noise: float = 0.0, tower: str = "latents") -> PreviewVectors:
    """Pictures that show exactly what the words say, in a space of their own."""
    rng = np.random.default_rng(1)
    rows = (TOWER.encode(list(things)) - USUAL) @ through + noise * rng.normal(
        size=(len(things), TOWER.dim)
    ) / TOWER.dim**0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return PreviewVectors(f"{len(things)} {noise} {tower}", tower, tuple(things), rows.astype(np.float32))


def ask(view, prompt=f"a {SILENT}", pictures=None, **more) -> Selection:
    return retrieve(view, prompt, family="emoji", tower=TOWER, use_weights=False, pictures=pictures, **more)


class WordlessText:
    """The text half of a CLIP: the same words as the pictures' space has them."""

    id, dim = "clip-text", TOWER.dim

    def encode(self, texts):
        return TOWER.encode(list(texts))


@pytest.mark.parametrize("text", [None, WordlessText()], ids=["learned", "clip"])
def test_a_lora_without_words_is_found_by_its_pictures(text):
    through = MAP if text is None else np.eye(TOWER.dim)
    found = ask(library(), pictures=PictureSource(drawn(through=through), text), threshold=0.0, top_k=1, use_text=False)
    (pick,) = found.picks
    assert pick.hash == SILENT and pick.parts.picture > 0.2 and pick.parts.text is pick.parts.weights is None
    assert "its previews" in pick.reason
    assert Selection.from_json(found.to_json()) == found
    without = ask(library(), threshold=0.0, top_k=1, use_text=False)
    assert all(miss.parts.picture is None for miss in (*without.picks, *without.misses))
    assert not any(pick.hash == SILENT and pick.score > 0.01 for pick in without.picks)


def test_pictures_that_say_nothing_are_hardly_believed():
    right, wrong = (
        ask(library(), pictures=PictureSource(drawn(noise=noise)), threshold=0.0, top_k=3, use_text=False)
        for noise in (0.0, 40.0)
    )
    claims = [float(note.split("at most ")[1].split("%")[0]) for found in (right, wrong) for note in found.notes[:1]]
    assert claims[0] > 60 > 35 > claims[1], claims
    assert all(pick.parts.picture is None or pick.parts.picture < 0.4 for pick in (*wrong.picks, *wrong.misses))


def test_words_and_pictures_add_up():
    view, source = library(), PictureSource(drawn())
    plain, seen = ask(view, "a blue robot"), ask(view, "a blue robot", pictures=source)
    assert plain.picks[0].hash == seen.picks[0].hash == "blue robot"
    parts = seen.picks[0].parts
    both = 1 - (1 - parts.picture) * (1 - max(parts.text, parts.lexical))
    assert seen.picks[0].score >= plain.picks[0].score and both > max(parts.text, parts.lexical)


def test_near_duplicates_prove_nothing():
    """Leaving one of two copies out leaves the other's answer in."""
    things = (*THINGS, "red apple twin")
    view = library(things, duplicates=[("red apple", "red apple twin")])
    found = ask(view, pictures=PictureSource(drawn((*things, SILENT))), use_text=False)
    assert f"({len(THINGS) - 1} asks)" in found.notes[0]


def test_too_few_are_told():
    few = THINGS[: LEAST_TAUGHT - 1]
    notes = ask(library(few), pictures=PictureSource(drawn((*few, SILENT)))).notes
    assert any("only 7 of them have words" in note for note in notes), notes
    notes = ask(library((), (SILENT,)), pictures=PictureSource(drawn((SILENT,)))).notes
    assert any("none of them has words" in note for note in notes), notes
    notes = ask(library(), pictures=PictureSource(drawn(("another",)))).notes
    assert any("none of these LoRAs has one" in note for note in notes), notes


def test_a_large_library_finds_it_too(monkeypatch):
    """The bounds of the other parts say nothing of pictures."""
    crowd = [f"number {n} of {n * n}" for n in range(60)]
    view, source = library((*THINGS, *crowd)), PictureSource(drawn())
    whole = ask(view, pictures=source, threshold=0.0, top_k=2)
    monkeypatch.setattr(finalists, "WHOLE", 8)
    monkeypatch.setattr(finalists, "BEGIN", 2)
    some = ask(view, pictures=source, threshold=0.0, top_k=2)
    assert [(p.hash, p.score) for p in some.picks] == [(p.hash, p.score) for p in whole.picks]
    assert SILENT in {pick.hash for pick in some.picks}
