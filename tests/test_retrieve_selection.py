"""Proves that a selection survives JSON unchanged and that a malformed one is refused by the name of its bad field."""

from __future__ import annotations

import copy
import json

import pytest

from autolora_core.errors import SelectionError
from autolora_core.retrieve.selection import FORMAT, Neighbour, Parts, Pick, Selection

NEAR = (Neighbour("c.safetensors", "ink drawing", 0.62),)
PARTS = Parts(0.5, None, 0.2)
PICK = Pick("a.safetensors", "ab" * 32, "/a.safetensors", "style", 0.8, 0.91, PARTS, "because", ("t",), NEAR)
MISS = Pick("b.safetensors", "cd" * 32, "/b.safetensors", None, 1.0, 0.3, Parts(), "not enough", ())
WHOLE = Selection("an otter", "emoji", (PICK,), (MISS,), None, {"folder": "x"}, "ridge-1", "minilm-1", ("note",))


def test_json_round_trip():
    data = json.loads(json.dumps(WHOLE.to_json()))
    assert data["format"] == FORMAT and "role" not in data["misses"][0]
    assert Selection.from_json(data) == WHOLE


def test_a_selection_saved_before_there_were_neighbours():
    data = WHOLE.to_json()
    for pick in (*data["picks"], *data["misses"]):
        del pick["neighbours"]
    found = Selection.from_json(data)
    assert found.picks[0].neighbours == () and found.misses == WHOLE.misses


def test_a_selection_written_by_hand_needs_little():
    data = {"format": FORMAT, "prompt": "x", "family": "flux"}
    data["picks"] = [{"name": "a.safetensors", "role": "pinned", "strength": 1}]
    assert Selection.from_json(data).picks[0] == Pick("a.safetensors", "", "", "pinned", 1.0, 0.0, Parts(), "")


def broken(path, value):
    data = copy.deepcopy(WHOLE.to_json())
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "path, value, named",
    [
        (["format"], "autolora-selection/9", "format"),
        (["prompt"], KeyError, "prompt is missing"),
        (["family"], 3, "family has the wrong type"),
        (["picks"], "a", "picks has the wrong type"),
        (["picks", 0], 5, r"picks\[0\] must be an object"),
        (["picks", 0, "role"], "hero", r"picks\[0\].role must be one of subject, style, pinned"),
        (["picks", 0, "role"], KeyError, r"picks\[0\].role is missing"),
        (["picks", 0, "name"], "", r"picks\[0\].name is empty"),
        (["picks", 0, "strength"], float("nan"), r"picks\[0\].strength must be a finite number"),
        (["picks", 0, "strength"], True, r"picks\[0\].strength"),
        (["picks", 0, "strength"], "1", r"picks\[0\].strength has the wrong type"),
        (["picks", 0, "score"], 1.5, r"picks\[0\].score must be a number from 0 to 1"),
        (["picks", 0, "parts", "weights"], -0.1, r"picks\[0\].parts.weights"),
        (["picks", 0, "parts", "smell"], 0.1, "unknown field 'smell'"),
        (["picks", 0, "triggers"], [1], r"picks\[0\].triggers must hold strings"),
        (["picks", 0, "neighbours"], "otter", r"picks\[0\].neighbours has the wrong type"),
        (["picks", 0, "neighbours", 0], "otter", r"picks\[0\].neighbours\[0\] must be an object"),
        (["picks", 0, "neighbours", 0, "words"], KeyError, r"neighbours\[0\].words is missing"),
        (["picks", 0, "neighbours", 0, "similarity"], 1.2, r"neighbours\[0\].similarity must be a number from -1 to 1"),
        (["picks", 0, "stregth"], 1, "unknown field 'stregth'"),
        (["misses", 0, "score"], "high", r"misses\[0\].score"),
        (["index"], [], "index has the wrong type"),
        (["notes"], "note", "notes has the wrong type"),
        (["extra"], 1, "unknown field 'extra'"),
    ],
)
def test_malformed_selections_are_refused(path, value, named):
    with pytest.raises(SelectionError, match=named):
        Selection.from_json(broken(path, value))


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(SelectionError, match="must be an object"):
        Selection.from_json(data)
