"""Proves that measuring one part of a benchmark on a new machine loses nothing of the others, and that what was
measured elsewhere says so."""

from __future__ import annotations

import json

import pytest

from benchmarks import parts, results_file

PARTS = {"quick": "no.module", "slow": "no.module"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A results file of another machine, and an empty cache."""
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUTOLORA_RESULTS", raising=False)
    for name in ("read_results", "write_results"):
        real = getattr(results_file, name)
        monkeypatch.setattr(parts, name, lambda *what, real=real: real(*what, folder=tmp_path))
    monkeypatch.setattr(parts, "machine", lambda: "this one")
    before = {"machine": "that one", "figures": {"quick_s": 1.0, "slow_s": 9.0},
              "rows": [{"part": "quick", "commit": "a", "n": 1}, {"part": "slow", "commit": "a", "n": 2}]}  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(before), encoding="utf-8")
    return tmp_path


def measured(part: str, **figures: float) -> None:
    path = parts.kept("bench", part)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"commit": "b", "figures": figures, "rows": [{"n": 3}]}
    path.write_text(json.dumps(document), encoding="utf-8")


def read(place) -> dict:
    return json.loads((place / "bench.json").read_text(encoding="utf-8"))


def test_the_other_parts_stay_and_say_where_they_come_from(place, capsys):
    measured("quick", quick_s=0.5)
    parts.write("bench", PARTS, 0)
    found = read(place)
    assert found["figures"] == {"quick_s": 0.5, "slow_s": 9.0}
    assert found["rows"] == [
        {"part": "quick", "commit": "b", "n": 3},
        {"machine": "that one", "part": "slow", "commit": "a", "n": 2},
    ]
    assert "what the results file says of it stays" in capsys.readouterr().out


def test_a_machine_that_was_noted_once_stays_noted(place):
    measured("quick", quick_s=0.5)
    parts.write("bench", PARTS, 0)
    parts.write("bench", PARTS, 0)
    assert [row.get("machine") for row in read(place)["rows"]] == [None, "that one"]


def test_when_all_parts_are_measured_nothing_of_before_stays(place):
    measured("quick", quick_s=0.5)
    measured("slow", slow_seconds=8.0)
    parts.write("bench", PARTS, 0)
    assert read(place)["figures"] == {"quick_s": 0.5, "slow_seconds": 8.0}


def test_without_a_file_there_are_only_the_parts_that_were_measured(place, capsys):
    (place / "bench.json").unlink()
    measured("quick", quick_s=0.5)
    parts.write("bench", PARTS, 0)
    assert [row["part"] for row in read(place)["rows"]] == ["quick"]
    assert "the results file is without it" in capsys.readouterr().out
