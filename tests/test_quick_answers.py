"""Proves that answers of a library that is searched approximately are those of exact search, that Encode makes such a
search ready and says so, and that a question opens it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import emoji_factors, write_lora
from retrieve_worlds import TopicTower
from test_retrieve_exact import OPTIONS, PROMPTS, WORDS, crowded

from autolora_core.cluster import command
from autolora_core.encode.towers import LexicalTower
from autolora_core.library import approximate, quick
from autolora_core.library.approximate import Approximate
from autolora_core.library.index import Library
from autolora_core.library.quick import EXACT
from autolora_core.retrieve import finalists, prepare, score
from autolora_core.retrieve.retrieve import retrieve


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(quick, "FROM", 20)
    monkeypatch.delenv(EXACT, raising=False)


@pytest.fixture(scope="module")
def world():
    return crowded(4)


def told(view, **options) -> tuple[list[dict], list[str]]:
    """Answers, and how weights were searched for each."""
    answers = [retrieve(view, prompt, tower=TopicTower(), **options).to_json() for prompt in PROMPTS]
    how = [[note for note in answer["notes"] if note.startswith("Weights were searched")] for answer in answers]
    for answer, notes in zip(answers, how, strict=True):
        answer["notes"] = [note for note in answer["notes"] if note not in notes]
    return answers, [note for notes in how for note in notes]


@pytest.mark.parametrize("claim", [None, 0.95])
def test_answers_are_those_of_exact_search(monkeypatch, world, claim):
    """Where it finds all of the best, as here, picks, misses, scores and reasons are the same; and it was used, and
    sometimes gone beyond."""
    monkeypatch.setattr(finalists, "WHOLE", 0)
    monkeypatch.setattr(finalists, "MANY", 4)
    monkeypatch.setattr(approximate, "CANDIDATES", (120,))
    monkeypatch.setattr(approximate, "DEPTH", 2)
    if claim is not None:
        monkeypatch.setattr(score, "hit_rate", lambda *_: claim)
        monkeypatch.setattr("autolora_core.retrieve.tune.hit_rate", lambda *_: claim)
    world.handle, used, deeper, searches = {"quick": claim}, 0, 0, []
    bounds = Approximate.bounds
    monkeypatch.setattr(Approximate, "bounds", lambda *asked: searches.extend(found := bounds(*asked)) or found)
    for options in OPTIONS:
        ways = {name: options.get(name, True) for name in ("use_weights", "use_text")}
        scorer = prepare.prepare(world, "emoji", TopicTower(), **ways).scorer
        scorer.quick.make()
        assert scorer.quick.found is not None or not ways["use_weights"]
        searches.clear()
        one, how = told(world, **options)
        deeper += scorer.quick.found.exactly if scorer.quick.found else 0
        assert all(np.isfinite(found.trusted) for found in searches), "not all rows were looked at"
        with monkeypatch.context() as patch:
            patch.setenv(EXACT, "1")
            other, forced = told(world, **options)
        assert one == other
        assert all("approximately" in note for note in how) and all("exactly" in note for note in forced)
        assert len(how) == len(forced)
        used += len(how)
    assert used and deeper, "answers were made approximately, and some needed more"


def test_encode_says_how_it_searches(monkeypatch, world):
    monkeypatch.setattr(prepare, "KEPT_FROM", 100)
    view = world
    view.handle = {"warm": 1}
    line = prepare.warm(view, "emoji", TopicTower())
    assert line.startswith(f"approximate, of {len(view.held)} vectors") and "50 files" in line
    monkeypatch.setattr(quick, "FROM", 10_000)
    assert prepare.warm(view, "emoji", TopicTower()) is None


def test_encode_command_makes_it_and_retrieve_opens_it(monkeypatch, tmp_path, capsys):
    """From LoRA files to an answer: nothing is learnt when a question comes, whatever came and went since."""
    monkeypatch.setattr(prepare, "KEPT_FROM", 1)
    monkeypatch.setattr(finalists, "WHOLE", 0)
    monkeypatch.setattr(command, "default_tower", lambda folders: LexicalTower())
    loras, folder = tmp_path / "loras", tmp_path / "library"
    for seed in range(40):
        said = {"modelspec.title": f"{chr(97 + seed % 26)}{chr(97 + seed // 2)}otter {WORDS[seed % 12]}"}
        write_lora(loras / f"otter number {seed}.safetensors", emoji_factors(seed, blocks=1), metadata=said)
    arguments = ["--library", str(folder), "--loras", str(loras)]
    assert command.main(arguments) == 0
    assert "Search of weights for emoji: approximate, of 40 vectors" in capsys.readouterr().out
    assert len(list(folder.glob("search-*.arrays"))) == 1
    (loras / "otter number 7.safetensors").unlink()
    with Library.open(folder) as library:
        library.scan([loras])
        monkeypatch.setattr(approximate, "learnt", None)
        found = retrieve(library, "an otter", tower=LexicalTower(), use_text=False, threshold=0.0)
    assert any("approximately" in note for note in found.notes) and len(found.picks) == 1
    assert "number 7." not in found.picks[0].name
