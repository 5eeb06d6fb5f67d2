"""Proves that LoRAs which nobody described are found by what they do to the base model's text states, that strangers
are not, and that the part is calibrated, shown, and absent where it has nothing to go on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autolora_core.encode.factor_table import FactorTable
from autolora_core.encode.generic import GENERIC_PROMPTS
from autolora_core.encode.input_states import TextStates
from autolora_core.encode.response_factors import ResponseFactors
from autolora_core.encode.towers import LexicalTower
from autolora_core.retrieve import responding
from autolora_core.retrieve.explain import reason
from autolora_core.retrieve.responding import MAX_PHRASES, RESPONSE_PRIOR, Responder, either
from autolora_core.retrieve.retrieve import retrieve
from autolora_core.retrieve.score import Evidence, Scorer
from autolora_core.retrieve.select import Choice
from autolora_core.retrieve.selection import Selection
from autolora_core.retrieve.spans import decompose
from autolora_core.retrieve.tune import calibrate, near_groups
from autolora_core.retrieve.view import MemoryView, ViewEntry, ViewText

WIDTH, SPACE = 48, "joint_blocks.0.context_block.attn.qkv"
THINGS = ("axolotl", "zeppelin", "samovar", "quokka", "theremin", "obelisk", "narwhal", "trebuchet", "ukulele", "yurt")
DESCRIBED = THINGS[:5]
SILENT = "picture only"


def word_state(word: str, width: int = WIDTH) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).normal(size=width)


class WordBase:
    """A base model whose text states are one fixed vector a word, and one of the same for every text."""

    lasting, family, device = True, "emoji", "cpu"

    def __init__(self, name: str = "word base", width: int = WIDTH):
        self.id, self.width, self.asked = name, width, []

    def record(self, texts, spaces, progress=None):
        yield self.states(texts, spaces)

    def states(self, texts, spaces) -> TextStates:
        self.asked += texts
        rows = [[word_state(word, self.width) for word in ("<end>", *text.lower().split())] for text in texts]
        counts = np.array([len(own) for own in rows], int)
        tokens = np.concatenate(rows) if rows else np.zeros((0, self.width))
        return TextStates(counts, {space: tokens for space in spaces if space == SPACE})


def factors(thing: str, width: int = WIDTH, spread: float = 0.25) -> ResponseFactors:
    """A LoRA that answers one word, and a little of anything."""
    direction = word_state(thing, width)
    rows = np.stack([direction / np.linalg.norm(direction), *np.random.default_rng(len(thing)).normal(size=(3, width))])
    rows[1:] *= spread / np.linalg.norm(rows[1:], axis=1, keepdims=True)
    return ResponseFactors({SPACE: (rows / np.linalg.norm(rows)).astype(np.float32)})


def entry(thing: str, described: bool) -> ViewEntry:
    return ViewEntry(
        f"{thing}.bin" if described else f"{len(thing):x}f3{thing[:1]}",
        thing,
        text=ViewText(thing if described else ""),
    )


@pytest.fixture
def library() -> MemoryView:
    """Ten things, half of them described, and a LoRA that reads no text."""
    held = [entry(thing, thing in DESCRIBED) for thing in THINGS] + [entry(SILENT, False)]
    return MemoryView(held, factors=FactorTable.of({thing: factors(thing) for thing in THINGS}))


def ask(library: MemoryView, prompt: str, base: WordBase | None, **options) -> Selection:
    return retrieve(library, prompt, family="emoji", tower=LexicalTower(), base=base, **options)


@pytest.mark.parametrize("thing", THINGS[5:])
def test_what_nobody_described_is_found(library, thing):
    found = ask(library, f"a {thing} on a table", WordBase())
    assert [pick.hash for pick in found.picks] == [thing]
    (pick,) = found.picks
    assert pick.parts.response > 0.8 and pick.parts.text is pick.parts.weights is None
    assert "in the model it responds clearly" in pick.reason and f"“{thing}”" in pick.reason
    assert Selection.from_json(found.to_json()) == found
    assert "10 of 11 LoRAs" in " ".join(found.notes)


def test_a_reason_is_told_by_the_parts_that_speak(library):
    """An encoder that sees nothing does not contradict what the words and the model show; alone, it says so."""
    phrase = SimpleNamespace(field="tags", text="otter, an otter")
    scorer = SimpleNamespace(sayings=SimpleNamespace(phrase=lambda at: phrase))
    spans = [SimpleNamespace(text="otter")]

    def told(weights: float, response: float, phrase: int = 0, words: float = 0.9, score: float = 0.9) -> str:
        parts = (np.array([[value]]) for value in (weights, words, words, response, 2.0))
        return reason(scorer, spans, Evidence(np.array([0]), *parts, np.array([[phrase]])), Choice(0, 0, score))

    said = "Matches “otter”: its tags say “otter, an otter”"
    assert told(0.01, 0.04) == f"{said} and in the model it hardly responds (4%)."
    assert told(0.3, np.nan) == f"{said} and its weights hint at it (30%)."
    assert told(0.01, np.nan, -1) == "Matches “otter”: its weights do not show it (1%)."
    far = "its tags “otter, an otter” are only distantly related and in the model it hardly responds (1%)"
    assert told(0.01, 0.01, words=0.05, score=0.03) == f"Compared with “otter”: {far}."


def test_without_a_base_it_is_not(library):
    for options in ({}, {"use_weights": False}):
        base = WordBase() if options else None
        found = ask(library, "a narwhal", base, **options)
        assert not found.picks and found.none_reason
        assert all(miss.parts.response is None for miss in found.misses)
        assert base is None or not base.asked, "a base that is not used is not run"


def test_described_ones_are_found_either_way(library):
    for base in (None, WordBase()):
        assert [pick.hash for pick in ask(library, "a samovar", base).picks] == ["samovar"]
    both = ask(library, "a samovar and a yurt", WordBase())
    assert {pick.hash for pick in both.picks} == {"samovar", "yurt"}


@pytest.mark.parametrize("prompt", ["a gargoyle", "lasagna with basil", *GENERIC_PROMPTS[:4]])
def test_strangers_find_nothing(library, prompt):
    found = ask(library, prompt, WordBase())
    assert not found.picks and found.none_reason


def test_silence_is_no_evidence(library):
    scorer = Scorer(library.held, LexicalTower(), None, None)
    states = library.asking(WordBase())
    scorer.responder = Responder.measure(library, "emoji", scorer.entries, states)
    silent = [entry.hash for entry in scorer.entries].index(SILENT)
    assert scorer.answers.sum() == len(THINGS) and not scorer.answers[silent]
    found = scorer.evidence(decompose("a yurt"), asking=states)
    assert np.isnan(found.response[:, silent]).all() and np.isfinite(np.delete(found.response, silent, axis=1)).all()
    alone = scorer.evidence(decompose("a yurt"))
    assert np.isnan(alone.response).all()
    assert np.allclose(found.logit[:, silent], alone.logit[:, silent])


def test_z_scores_are_those_of_the_formula(library):
    base = WordBase()
    responder = Responder.measure(library, "emoji", library.held, library.asking(base))
    texts = [*GENERIC_PROMPTS, "a yurt"]
    states = base.states(texts, [SPACE])
    tokens, owner = states.tokens[SPACE], np.repeat(np.arange(len(texts)), states.counts)
    mean = tokens[owner < len(GENERIC_PROMPTS)].mean(axis=0)
    for column, thing in enumerate(THINGS[:3]):
        rows = factors(thing).rows[SPACE].astype(np.float64)
        energy = np.square((tokens - mean) @ rows.T).sum(axis=1)
        logs = [
            np.log(energy[owner == i].sum() / np.square(tokens - mean)[owner == i].sum()) for i in range(len(texts))
        ]
        usual = np.array(logs[:-1])
        wanted = (logs[-1] - usual.mean()) / usual.std()
        found = responder.z(["a yurt"], library.asking(base))[0, column]
        assert found == pytest.approx(wanted, abs=0.02), "int8 rows"


def test_in_a_large_library_a_lora_must_stand_out_of_what_strangers_answer(library, monkeypatch):
    monkeypatch.setattr(responding, "ENOUGH_STRANGERS", len(THINGS))
    asking, texts = library.asking(WordBase()), ["a yurt", GENERIC_PROMPTS[5]]
    found = Responder.measure(library, "emoji", library.held, asking)
    plain = replace(found, stranger=None)
    has = found.has
    assert plain.has.sum() == len(THINGS) and found.stranger is not None
    z, known = (plain.z(asked, asking)[:, has] for asked in (texts, GENERIC_PROMPTS))
    standard, known = ((x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True) for x in (z, known))
    covariance = known @ known.T / len(THINGS) + np.eye(len(known))
    left = standard[0] - standard[0] @ known.T / len(THINGS) @ np.linalg.solve(covariance, known)
    assert np.allclose(found.z(texts, asking)[0, has], left / left.std(), atol=1e-6)
    others = np.delete(known, 5, axis=0)
    inside = others @ others.T / len(THINGS) + np.eye(len(others))
    left = standard[1] - standard[1] @ others.T / len(THINGS) @ np.linalg.solve(inside, others)
    mine = found.z(texts, asking)
    assert np.allclose(mine[1, has], left / left.std(), atol=1e-6), "a generic prompt by the others"
    assert np.isnan(mine[:, ~has]).all() and mine[0, has].argmax() == THINGS.index("yurt")


def test_small_libraries_have_no_strangers_to_speak_of(library):
    assert Responder.measure(library, "emoji", library.held, library.asking(WordBase())).stranger is None


def test_the_answer_does_not_depend_on_what_was_asked_before(library):
    library.handle = {"folder": "here"}
    base = WordBase()
    first = ask(library, "a narwhal by a yurt", base)
    ask(library, "a quokka", base)
    count = len(base.asked)
    again = ask(library, "a narwhal by a yurt", base)
    assert again == first
    assert GENERIC_PROMPTS[0] not in base.asked[count:], "the library is made ready once"
    cold = ask(replace(library, handle={}), "a narwhal by a yurt", WordBase("another"))
    assert cold.picks == first.picks


def test_a_library_calibrates_the_part_on_itself(library):
    scorer = Scorer(library.held, LexicalTower(), None, None)
    states = library.asking(WordBase())
    scorer.responder = Responder.measure(library, "emoji", scorer.entries, states)
    calibrate(scorer, near_groups(scorer, []), False, True, states)
    assert scorer.response_model.examples[0] == len(DESCRIBED)
    assert scorer.response_model.slope[0] > 0 and scorer.response_claim == pytest.approx((5 + 9) / (5 + 10))
    # Captions that say nothing of what the files do: the part must be believed less.
    liars = [entry(thing, False) for thing in THINGS]
    liars = [replace(one, text=ViewText(THINGS[(i + 3) % 10])) for i, one in enumerate(liars)]
    lied = Scorer(liars, LexicalTower(), None, None)
    lied.responder = Responder.measure(library, "emoji", lied.entries, states)
    calibrate(lied, near_groups(lied, []), False, True, states)
    assert lied.response_claim < 0.6
    assert lied.response_evidence(np.array([[9.0]])) < scorer.response_evidence(np.array([[9.0]]))


def test_only_loras_of_the_connected_width_take_part(library):
    every = {thing: factors(thing, 16 if thing in THINGS[5:] else WIDTH) for thing in THINGS}
    mixed = replace(library, factors=FactorTable.of(every))
    assert [pick.hash for pick in ask(mixed, "a yurt", WordBase("narrow", 16)).picks] == ["yurt"]
    found = Responder.measure(mixed, "emoji", mixed.held, mixed.asking(WordBase("narrow", 16)))
    assert found.has.sum() == 5


def test_a_style_is_asked_for_as_a_picture_in_it(library):
    base = WordBase()
    ask(library, "a yurt in samovar style", base)
    assert {"yurt", "a picture in samovar style"} <= set(base.asked) and "samovar style" not in base.asked


def test_names_that_say_nothing_do_not_make_the_others_less_sure(library):
    """Of seven described files two are called what they do not show: the share of right ones falls, not their slope."""
    honest, mixed = (Scorer(held, LexicalTower(), None, None) for held in (library.held, _with_odd_names(library)))
    asking = library.asking(WordBase())
    for scorer in (honest, mixed):
        scorer.responder = Responder.measure(library, "emoji", scorer.entries, asking)
        calibrate(scorer, near_groups(scorer, []), False, True, asking)
    assert mixed.response_claim < honest.response_claim
    assert mixed.response_model.slope[0] == pytest.approx(honest.response_model.slope[0], rel=0.1)


def _with_odd_names(library: MemoryView) -> list[ViewEntry]:
    odd = {THINGS[5]: "v2 final", THINGS[6]: "epoch ten"}
    return [replace(one, text=ViewText(odd.get(one.hash, one.text.title))) for one in library.held]


def test_a_base_that_none_can_be_asked_through_says_so(library):
    bare = replace(library, factors=FactorTable.packed({}))
    found = ask(bare, "a narwhal", WordBase())
    assert not found.picks and "could not be asked" in " ".join(found.notes)


def test_very_long_prompts_ask_for_whole_phrases_first(library):
    base = WordBase()
    prompt = ", ".join(f"odd{n} strange{n} thing{n}" for n in range(60)) + ", a yurt"
    ask(library, "a yurt", base)
    known = set(base.asked)
    found = ask(library, prompt, base)
    assert len(set(base.asked) - known) <= MAX_PHRASES
    assert found.misses or found.picks


def test_two_readings_of_the_weights():
    nan = np.nan
    found = either(np.array([0.5, nan, 0.3, nan]), np.array([0.5, 0.4, nan, nan]))
    assert found[:3].tolist() == pytest.approx([0.75, 0.4, 0.3]) and np.isnan(found[3])


def test_before_any_caption_the_stated_model_stands():
    assert RESPONSE_PRIOR.probability(np.array([[5.0]])) > 0.99 and responding.DEVIATION_FLOOR > 0
    assert RESPONSE_PRIOR.probability(np.array([[0.0]])) < 0.01
