"""Proves that what cards show is what the reports say: of an application and of a scan; and that what passes, and how
far an encode is, is told while it happens, to the node that it is about."""

from __future__ import annotations

import json

import pytest
import tiny_models
from apply_world import sd3_fixtures, two
from comfy_local import every_progress_message, pack_module
from conftest import emoji_factors, write_lora

from autolora_core.fusion.card import fusion_card
from autolora_core.fusion.report import LoraOutcome
from autolora_core.fusion.requests import Request, library_of
from autolora_core.library.entries import Entry, EntryText, ScanReport
from autolora_core.library.fit_report import FitReport
from autolora_core.library.report import Summary, encode_report
from autolora_core.library.report_card import MOST, MOST_KINDS, OTHERS, encode_card, kind_of, problem_kinds
from autolora_core.pace import Pace

state, world = sd3_fixtures(64)


@pytest.fixture
def told(comfy, monkeypatch) -> list[tuple[str, dict]]:
    """What would be sent to the page."""
    messages: list[tuple[str, dict]] = []
    for name in ("nodes.bridge_record", "nodes.bar"):
        monkeypatch.setattr(pack_module(name), "send", lambda event, data: messages.append((event, data)))
    return messages


def test_what_was_refused_is_counted_by_reason_and_named():
    outcome = LoraOutcome("a.safetensors", 0.5, 0.25, "selection", matched=3, total=20, clip_layers=2)
    outcome.missing = [f"layer.{number}" for number in range(17)]
    outcome.encoders, outcome.text_missing = {"CLIP-L": (2, 3)}, {"clip_l.x": "another size"}
    outcome.forwarded = {"conv": "not a linear layer"}
    card = fusion_card("gate", "a.gate", [(outcome, Request("a.safetensors", 0.5, 0.25, sha256="f" * 64))], 3, 4)
    (one,) = json.loads(json.dumps(card))["loras"]
    assert (one["matched"], one["total"], one["hash"]) == (3, 20, "f" * 64)
    missing, text = one["refused"]
    assert missing["why"] == "not in this model" and missing["count"] == 17 and len(missing["layers"]) == 8
    assert text == {"why": "left out of the text encoders: another size", "count": 1, "layers": ["clip_l.x"]}
    assert one["other"] == [{"why": "not a linear layer", "count": 1, "layers": ["conv"]}]
    assert one["text"] == ["CLIP-L 2 of 3"] and (card["gated"], card["fused"]) == (3, 4)
    outcome.clip_connected = False
    assert fusion_card("sum", "", [(outcome, Request("a", 1, 1))], 0, 4)["loras"][0]["text"][0].startswith(
        "its text half"
    )


@pytest.mark.parametrize(
    ("selection", "name"),
    [(None, ""), ({"index": {"folder": "/u/autolora/mine/"}}, "mine"), ({"index": {"folder": "C:\\u\\it"}}, "it"),
     ({"index": {}}, ""), ({"index": {"folder": 3}}, "")],
)  # fmt: skip
def test_the_library_of_a_selection(selection, name):
    assert library_of(selection) == name


def test_apply_gives_the_card_beside_the_report(world):
    a, b = two(world)
    stack = [(a[0], a[1], a[1]), (b[0], b[1], b[1]), ("zero.safetensors", 0.0, 0.0)]
    world.lora("zero.safetensors")
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    out = getattr(node, node.FUNCTION)(model=world.model, mode="sum", lora_stack=stack, unique_id="12:3")
    (card,), (report,) = out["ui"]["autolora"], out["ui"]["text"]
    assert out["result"][2] == report and json.loads(json.dumps(card)) == card
    assert [(one["name"], one["strength"]) for one in card["loras"]] == [a, b] and card["absent"] == [
        "zero.safetensors"
    ]
    for one in card["loras"]:
        assert f"- {one['name']} × {one['strength']:g} (stack): {one['matched']} of {one['total']} layers" in report
    assert (card["mode"], card["why"]) == ("sum", "asked for") and not card["recorded"]


def test_what_passes_is_told_step_by_step_as_the_heat_map_says_it_afterwards(world, told):
    a, b = two(world)
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    stack = [(a[0], a[1], a[1]), (b[0], b[1], b[1])]
    out = node.run(model=world.model, mode="energy", lora_stack=stack, record=True, unique_id="7")
    assert out["ui"]["autolora"][0]["recorded"]
    tiny_models.sample(out["result"][0], steps=3)
    events = [data for event, data in told if event == "heat"]
    assert events[0] == {"node": "7", "begin": True, "steps": 3} and events[-1]["end"]
    assert out["ui"]["autolora"][0]["heat"] == events[-1]["heat"], "the card that was given has what passed"
    for lora, kept in events[-1]["heat"]["loras"].items():
        steps = [[row[0] for row in one["loras"][lora]] for one in events[1:-1]]
        assert kept == [pytest.approx(row, abs=0.0051) for row in zip(*steps, strict=True)]
    assert [one["step"] for one in events[1:-1]] == [0, 1, 2] and {one["node"] for one in events} == {"7"}
    heat = pack_module("nodes.bridge_record").last_heat(out["result"][0]).as_json()
    for lora in heat["loras"]:
        assert [[row[0] for row in one["loras"][lora["name"]]] for one in events[1:-1]] == [
            list(column) for column in zip(*lora["passes"], strict=True)
        ]
    assert len(told) == 5, "reading it afterwards tells nobody"
    tiny_models.sample(out["result"][0], steps=2)
    assert [data["steps"] for event, data in told[5:] if data.get("begin")] == [2]


def test_nobody_is_told_without_a_node_or_a_record(world, told):
    a, b = two(world)
    tiny_models.sample(world.fused(a, b, mode="sum", record=True), steps=2)
    node = pack_module("nodes.gated_apply").AutoLoRAGatedApply()
    out = node.run(model=world.model, mode="sum", lora_stack=[(a[0], 1.0, 1.0)], unique_id="7")
    tiny_models.sample(out["result"][0], steps=2)
    assert told == []


def test_encode_gives_the_card_and_tells_how_far_it_is(comfy, tmp_path, monkeypatch, told):
    module, paths = pack_module("nodes.encode_library"), pack_module("nodes.bridge_paths")
    monkeypatch.setattr(
        module, "shared_tower", lambda folders=(): pack_module("autolora_core.encode.towers").LexicalTower()
    )
    monkeypatch.setattr(paths, "running_node", lambda: "4")
    every_progress_message(monkeypatch)
    extensions = comfy.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(comfy.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], extensions))
    comfy.set_user_directory(str(tmp_path / "user"))
    for seed, name in enumerate(("otter", "fox", "copy of fox")):
        write_lora(tmp_path / "loras" / f"{name}.safetensors", emoji_factors(min(seed, 1), blocks=1))
    (tmp_path / "loras" / "broken.safetensors").write_bytes(b"<html>")
    out = module.AutoLoRAEncodeLibrary().encode("all loras", "", "told", False)
    (card,), (report,) = out["ui"]["autolora"], out["ui"]["text"]
    assert json.loads(json.dumps(card)) == card
    assert (card["library"], card["files"], card["changes"]) == (
        "told",
        4,
        {"new": 4},
    ) and "4 LoRA files: 4 new." in report
    assert card["families"] == [{"family": "emoji", "count": 3, "worded": 3, "partial": 3, "lines": {}}]
    assert "- emoji: 3 (3 with words that describe them, 3 partial)" in report
    (broken,) = card["problems"]
    assert broken["name"] == "broken.safetensors" and not broken["encoded"] and broken["why"] in report
    assert card["duplicates"] == {"identical": 1, "near": 0} and card["problems_left_out"] == 0
    events = [data for event, data in told if event == "progress"]
    assert (
        events[0]["step"] == "Reading files" and events[-1]["share"] == 1 and {one["node"] for one in events} == {"4"}
    )
    assert all(one["done"] <= one["total"] and 0 <= one["share"] <= 1 for one in events)


def test_pace():
    pace = Pace()
    assert pace.at("reading", 0, 100, 0.0, 10.0) == {
        "done": 0, "total": 100, "share": 0.0, "rate": None, "seconds": None
    }  # fmt: skip
    assert pace.at("reading", 1, 100, 0.01, 10.5)["seconds"] is None, "too early to say"
    later = pace.at("reading", 20, 100, 0.25, 15.0)
    assert (later["rate"], later["seconds"]) == (4.0, 15.0)
    assert pace.at("comparing", 5, 10, 0.5, 20.0)["rate"] is None, "another step has a rate of its own"
    assert pace.at("comparing", 9, 10, 0.8, 22.0)["rate"] == 2.0


def test_messages_go_nowhere_without_a_server(monkeypatch):
    import sys
    from types import SimpleNamespace

    events = pack_module("nodes.bridge_events")
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace()))
    events.send("heat", {"node": "1"})
    sent = []
    instance = SimpleNamespace(client_id="me", send_sync=lambda *message: sent.append(message))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    events.send("heat", {"node": "1"})
    instance.last_prompt_id = "p"
    events.send("heat", {"node": "1"})
    assert sent == [("autolora.heat", {"node": "1"}, "me"), ("autolora.heat", {"node": "1", "prompt_id": "p"}, "me")]


def test_what_is_kept_with_a_card_leaves_earlier_runs_as_they_were(monkeypatch):
    """ComfyUI gives one card to all runs that need not run the node again."""
    import sys
    import threading
    from types import SimpleNamespace

    events, card, other = pack_module("nodes.bridge_events"), {"heat": None}, {"heat": None}
    shared = {"text": ["r"], "autolora": [other, card]}
    queue = SimpleNamespace(history={}, mutex=threading.Lock())
    monkeypatch.setitem(
        sys.modules,
        "server",
        SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue))),
    )
    for run in ("first", "second", "third"):
        events.keep_with(card, "7", {"heat": run})
        queue.history[run] = {"prompt": (), "outputs": {"7": shared, "8": {"text": []}}}  # as at the end of a run
    kept = {run: entry["outputs"]["7"] for run, entry in queue.history.items()}
    assert {run: one["autolora"][1]["heat"] for run, one in kept.items()} == {run: run for run in kept}
    assert all(one["autolora"][0] is other and one["text"] == ["r"] for one in kept.values())
    queue.history["odd"] = {"outputs": {"7": None}}
    queue.history["odder"] = None
    events.keep_with(card, "7", {"heat": "fourth"})
    assert card["heat"] == "fourth" and queue.history["third"]["outputs"]["7"]["autolora"][1]["heat"] == "third"
    monkeypatch.setitem(sys.modules, "server", None)
    events.keep_with(card, "7", {"heat": "alone"})
    assert card["heat"] == "alone"


def test_a_kept_table_is_small_whatever_was_sampled():
    import torch

    from autolora_core.fusion.heat_kept import MOST, kept_heat
    from autolora_core.fusion.record import Heat

    def of(loras, blocks, steps):
        table = torch.ones(steps, blocks, loras, 3, dtype=torch.float64)
        table[..., 1] = torch.arange(steps).view(-1, 1, 1) ** 2.0
        table[:, 0, 0] = 0  # a LoRA without this layer
        modules = [f"double_blocks.{block}.img_attn.qkv" for block in range(blocks)]
        return Heat([f"lora {k}" for k in range(loras)], modules, list(range(steps)), table)

    small = kept_heat(of(2, 2, 3))
    assert (small["steps"], small["every"], len(small["blocks"])) == (3, 1, 2)
    assert small["loras"]["lora 1"] == [[0, 1, 2], [0, 1, 2]] and small["loras"]["lora 0"][0] == [None, None, None]
    for size in ((3, 57, 50), (20, 57, 200), (300, 300, 1000)):
        found = kept_heat(of(*size))
        assert len(json.dumps(found)) <= MOST and len(found["loras"]) == size[0]
        rows = found["loras"]["lora 1"]
        assert len(rows) == len(found["blocks"]) and {len(row) for row in rows} == {-(-size[2] // found["every"])}
        assert rows[0][0] == pytest.approx((found["every"] - 1) / 2, abs=0.51)  # the mean of its steps
    assert kept_heat(of(9000, 1, 1)) is None
    assert kept_heat(Heat(["a"], ["b"], [], torch.zeros(0, 1, 1, 3))) is None


# -- a card of many problems ------------------------------------------------------------------------------------------


def summary_of(problems: int) -> Summary:
    """A scan of files with three kinds of problems in turn, each with layers, numbers and names of its own."""
    kinds = (
        "lora_unet_{}.mid: {} of 640 values of down are NaN or infinite",
        "the header claims {}{:03d} bytes but the file has 99: it is truncated or it lies. What to do: try again",
        "no tensor of this file is part of a LoRA ('a.{}', 'b.{}'). What to do: check that it is a LoRA",
    )
    found = [(f"f/{i}.safetensors", kinds[i % 3].format(i, i)) for i in range(problems)]
    return Summary(ScanReport(added=problems, problems=found), FitReport(), [], folder="/u/autolora/x")


def test_a_card_of_thirty_thousand_problems_is_small_and_counts_them_all():
    card = encode_card(summary_of(30_000))
    assert len(card["problems"]) == MOST and card["problems_left_out"] == 30_000 - MOST
    assert card["problems"][1]["why"].endswith("What to do: try again"), "how to mend it is said"
    assert card["problem_kinds"] == [
        {"why": "no tensor of this file is part of a LoRA …", "count": 10_000},
        {"why": "the header claims … bytes but the file has … it is truncated or it lies", "count": 10_000},
        {"why": "… of … values of down are NaN or infinite", "count": 10_000},
    ]
    assert "Unreadable" in card["problems_where"] and len(json.dumps(card)) < 60_000
    few = encode_card(summary_of(MOST))
    assert (len(few["problems"]), few["problems_left_out"], few["problems_where"]) == (MOST, 0, "")


def test_kinds_beyond_the_most_are_one_of_their_own():
    letters = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(100)]
    kinds = problem_kinds([f"the file is {one}" for one in letters] + ["the file is aa"])
    assert len(kinds) == MOST_KINDS and kinds[0] == {"why": "the file is aa", "count": 2}
    assert kinds[-1] == {"why": OTHERS, "count": 101 - 2 - (MOST_KINDS - 2)}


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("the header is not valid JSON (value: line 1 (char 0)). What to do: x", "the header is not valid JSON …"),
        ("the user's file can't be read", "the user's file can't be read"),
        ("metadata 'x y' is a dict, not a text", "metadata … is a dict, not a text"),
        ("the file cannot be read: Permission denied", "the file cannot be read: Permission denied"),
        ("x" * 5000, "x" * 119 + "…"),
        ("(" * 5000, "(" * 119 + "…"),
    ],
)  # fmt: skip
def test_the_kind_of_a_problem(problem, kind):
    assert kind_of(problem) == kind


def test_a_group_of_many_copies_is_a_short_line_of_the_report():
    def copy(number: int) -> Entry:
        name = f"a folder/copy {number}.safetensors"
        return Entry(name, name, "0" * 64, 1, 0.0, "emoji", "", "lora", None, 4, False, (), EntryText())

    copies = [copy(number) for number in range(10_000)]
    summary = Summary(ScanReport(added=10_000), FitReport(), copies, [copies])
    (line,) = [line for line in encode_report(summary).splitlines() if line.endswith("identical files")]
    assert line.startswith("- a folder/copy 0.safetensors = ") and "9992 more" in line and len(line) < 1000
    assert encode_card(summary)["duplicates"]["identical"] == 9999
