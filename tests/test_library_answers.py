"""Proves that a model is asked for a text once, on disk for a library's own texts and in memory for prompts; that a
library that changed asks anew only where it must; and that a damaged or foreign cache is never believed."""

from __future__ import annotations

import numpy as np
import pytest

from autolora_core.encode.factor_table import FactorTable
from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.input_states import TextStates, UsualStates
from autolora_core.encode.response import response
from autolora_core.encode.response_factors import ResponseFactors
from autolora_core.library import answer_store, answers
from autolora_core.library.answer_store import FILE_NAME, AnswerStore
from autolora_core.library.answers import CachedAnswers, shared_memory

FIRST, PICTURE = "joint_blocks.0.context_block.attn.qkv", "joint_blocks.0.x_block.attn.qkv"
WIDTH, PLACES, GROUP = 6, 2, 50


def numbers(text: str, count: int) -> np.ndarray:
    return np.random.default_rng(sum(map(ord, text))).normal(size=(count, WIDTH)).astype(np.float32)


class Source:
    """Made-up inputs: one token a word, and two of the picture; fifty texts at a time."""

    family, device = "emoji", "cpu"

    def __init__(self, name: str = "base", lasting: bool = True):
        self.id, self.lasting, self.asked = name, lasting, []

    def record(self, texts, spaces, progress=None):
        for start in range(0, len(texts), GROUP):
            yield self.states(texts[start : start + GROUP], spaces)

    def states(self, texts, spaces) -> TextStates:
        self.asked += texts
        words = [len(text.split()) for text in texts]
        tokens = {}
        if FIRST in spaces:
            tokens[FIRST] = np.concatenate([numbers(t, n) for t, n in zip(texts, words, strict=True)])
        if PICTURE in spaces:
            tokens[f"{PICTURE}@image"] = np.concatenate([numbers(f"{t} picture", PLACES) for t in texts])
        return TextStates(np.array(words, int), tokens)

    @property
    def news(self) -> list[str]:
        return [text for text in self.asked if text not in GENERIC_PROMPTS]


def table(*names: str) -> FactorTable:
    rows = {name: np.random.default_rng(len(name)).normal(size=(2, WIDTH)).astype(np.float32) for name in names}
    return FactorTable.of({name: ResponseFactors({FIRST: own, PICTURE: own[:1]}) for name, own in rows.items()})


@pytest.fixture
def store(tmp_path):
    opened = AnswerStore(tmp_path)
    yield opened
    opened.close()


LORAS = table("otter", "fox")


def wanted(loras: FactorTable, texts: list[str]) -> np.ndarray:
    source = Source()
    usual = UsualStates()
    usual.add(source.states(GENERIC_PROMPTS, (FIRST, PICTURE)))
    return response(loras, source.states(texts, (FIRST, PICTURE)), usual.means())


def test_answers_are_those_of_the_formula_in_the_order_asked(store):
    held = CachedAnswers(source := Source(), store)
    held.answers(LORAS, ["otter", "a red fox"], keep=True)
    texts = ["a red fox", "owl", "otter", "owl"]
    found = held.answers(LORAS, texts, keep=True)
    assert np.allclose(found, wanted(LORAS, texts), atol=1e-5)
    assert source.news == ["otter", "a red fox", "owl"]
    assert len(source.asked) == len(GENERIC_PROMPTS) + 3, "the generic prompts are asked once"


def test_the_generic_prompts_are_read_once_or_twice_by_what_can_be_held(store, monkeypatch):
    once = CachedAnswers(one := Source(), store).answers(LORAS, GENERIC_PROMPTS)
    monkeypatch.setattr(answers, "MAX_HELD", 1)
    twice = CachedAnswers(two := Source("other"), store).answers(LORAS, GENERIC_PROMPTS)
    assert len(one.asked) == len(GENERIC_PROMPTS) and len(two.asked) == 2 * len(GENERIC_PROMPTS)
    assert np.allclose(once, twice, atol=1e-5)


def test_what_is_kept_is_there_tomorrow(store, tmp_path):
    first = CachedAnswers(Source(), store).answers(LORAS, ["otter", "fox"], keep=True)
    later, again = Source(), AnswerStore(tmp_path)
    found = CachedAnswers(later, again).answers(LORAS, ["fox", "otter"], keep=True)
    assert later.asked == [] and np.allclose(found, first[:, ::-1])
    CachedAnswers(other := Source("another base"), again).answers(LORAS, ["fox"], keep=True)
    assert later.asked == [] and other.news == ["fox"]
    new = CachedAnswers(later, again).answers(LORAS, ["owl"], keep=True)
    assert later.asked == ["owl"], "what the base usually reads is kept too"
    assert np.allclose(new, wanted(LORAS, ["owl"]), atol=1e-5)
    again.close()


def test_prompts_and_patched_models_stay_in_memory(store):
    source = Source()
    held = CachedAnswers(source, store)
    for _ in range(2):
        held.answers(LORAS, ["a prompt"])
    assert source.news == ["a prompt"]
    assert store.read("base", LORAS.id, LORAS.hashes, ["a prompt"]) == {}
    patched = Source("patched", lasting=False)
    CachedAnswers(patched, store).answers(LORAS, ["otter"], keep=True)
    assert store.read("patched", LORAS.id, LORAS.hashes, ["otter"]) == {}


def test_prompts_are_remembered_by_who_was_asked():
    for name, asked in (("one", ["fox"]), ("two", ["fox"]), ("one", []), ("three", ["fox"]), ("two", ["fox"])):
        source = Source(name)
        CachedAnswers(source, memory=shared_memory(name)).answers(LORAS, ["fox"])
        assert source.news == asked, name


def test_a_part_of_the_library_needs_no_model_and_more_of_it_does(store):
    whole = CachedAnswers(Source(), store).answers(LORAS, ["otter"], keep=True)
    part = CachedAnswers(source := Source(), store).answers(LORAS.part([1]), ["otter"], keep=True)
    assert source.asked == [] and np.allclose(part, whole[1:])
    more = table("otter", "fox", "a new one")
    found = CachedAnswers(source, store).answers(more, ["otter"], keep=True)
    assert source.asked == ["otter"] and np.allclose(found[:2], whole, atol=1e-5)


def test_answers_of_loras_that_were_read_otherwise_are_not_believed(store):
    CachedAnswers(Source(), store).answers(LORAS, ["otter"], keep=True)
    assert store.read("base", LORAS.part([1]).id, LORAS.hashes[1:], ["otter"])
    other = f"0-{LORAS.part([1]).id.partition('-')[2]}"
    assert not store.read("base", other, LORAS.hashes[1:], ["otter"])


def test_loras_of_another_width_have_no_answer(store):
    narrow = ResponseFactors({FIRST: np.ones((1, WIDTH - 1), np.float32)})
    wide = ResponseFactors({FIRST: np.ones((1, WIDTH), np.float32)})
    mixed = FactorTable.of({"narrow": narrow, "wide": wide})
    found = CachedAnswers(Source(), store).answers(mixed, ["otter"])
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_no_texts_and_no_loras(store):
    assert CachedAnswers(Source(), store).answers(LORAS, []).shape == (2, 0)
    assert CachedAnswers(source := Source(), store).answers(FactorTable.of({}), ["otter"]).shape == (0, 1)
    assert source.asked == [], "nobody would answer"


def test_bases_and_libraries_used_long_ago_make_room(store, monkeypatch):
    monkeypatch.setattr(answer_store, "MAX_SOURCES", 2)
    for name in ("a", "b", "c"):
        CachedAnswers(Source(name), store).answers(LORAS, ["otter"], keep=True)
    assert [name for name in "abc" if store.read(name, LORAS.id, LORAS.hashes, ["otter"])] == ["b", "c"]
    monkeypatch.setattr(answer_store, "MAX_TABLES", 1)
    CachedAnswers(Source("c"), store).answers(table("owl"), ["otter"], keep=True)
    assert not store.read("c", LORAS.id, LORAS.hashes, ["otter"])


def test_a_broken_file_is_started_anew(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 100)
    store = AnswerStore(tmp_path)
    found = CachedAnswers(Source(), store).answers(LORAS, ["otter"], keep=True)
    assert np.allclose(store.read("base", LORAS.id, LORAS.hashes, ["otter"])["otter"], found[:, 0])
    store._file.db.execute("UPDATE answers SET answers = x'00'")
    store._file.db.execute("UPDATE means SET mean = x'00'")
    again = CachedAnswers(Source(), store).answers(LORAS, ["otter"], keep=True)
    assert np.allclose(again, found, atol=1e-5), "numbers cut short are not believed"
    store.close()


def test_without_a_file_the_model_is_asked_again(tmp_path):
    store = AnswerStore(tmp_path)
    store.close()
    held = CachedAnswers(source := Source(), store)
    for _ in range(2):
        assert held.answers(LORAS, ["otter"], keep=True).shape == (2, 1)
    assert source.news == ["otter", "otter"]
