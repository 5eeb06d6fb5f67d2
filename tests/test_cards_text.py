"""What the browser files of cards and panel do without a page, run by Node: choices are read, written and matched by
the rules of the node, and a result that was kept is found in the history however many nodes lie before it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autolora_core.errors import SelectionError
from autolora_core.retrieve.choices import FORMAT, Choice, read_choices
from autolora_core.retrieve.wishes import read_wishes

WEB = Path(__file__).resolve().parents[1] / "web"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not on the PATH")


def said_by(folder: Path, module: str, script: str, given: Any = None) -> Any:
    """What ``script`` gives back; it has the module as ``it`` and ``given``."""
    for part in ("cards", "panel"):
        shutil.copytree(WEB / part, folder / part, dirs_exist_ok=True)
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    text = f"import * as it from './{module}';\nconst given = {json.dumps(given)};\n"
    text += f"const found = await (async () => {{ {script} }})();\nconsole.log(JSON.stringify(found));\n"
    (folder / "ask.js").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [NODE, str(folder / "ask.js")], capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


HISTORY = """
const { depth } = given;
const graph = (start) => {
  const made = { 0: { class_type: "Checkpoint", inputs: { name: start } } };
  for (let i = 1; i <= depth; i++)
    made[i] = { class_type: "LoraLoader", inputs: { model: [`${i - 1}`, 0], clip: [`${i - 1}`, 1], strength: 1 } };
  return made;
};
const shown = (card) => (card ? { [depth]: { autolora: [card] } } : {});
const run = (start, card) => ({ prompt: [0, "", graph(start)], outputs: shown(card) });
const history = { a: run("x", "of x"), b: run("y", "of y"), c: run("x"), d: run("z") };
const api = { fetchApi: async () => ({ json: async () => history }) };
return Promise.all(["c", "d", "gone"].map((id) => it.cachedCard(api, id, String(depth))));
"""


@pytest.mark.parametrize("depth", [1, 60])
def test_a_card_is_that_of_the_same_nodes_however_many_there_are(tmp_path, depth):
    assert said_by(tmp_path, "cards/cached.js", HISTORY, {"depth": depth}) == ["of x", None, None]


def test_what_the_cards_write_the_node_reads(tmp_path):
    script = """
    let all = it.withChoice(new Map(), "a/otter.safetensors", "strength", 0.6);
    all = it.withTrigger(all, "A\\\\Otter", "constructor", true, false);
    all = it.withTrigger(all, "a/otter", "tok", true, true);
    all = it.withChoice(all, "__proto__", "role", "style");
    all = it.withChoice(it.withChoice(all, "gone", "role", "style"), "gone", "role", undefined);
    return [it.writeChoices(all), it.writeChoices(it.readChoices(it.writeChoices(all)))];
    """
    written, again = said_by(tmp_path, "cards/choices.js", script)
    assert read_choices(written) == {
        "a/otter.safetensors": Choice(0.6, {"constructor": True}),
        "__proto__": Choice(role="style"),
    }
    assert again == written and FORMAT in written


class Entry:
    """What pinning goes by."""

    def __init__(self, name: str):
        self.name, self.hash, self.family = name, name, "sdxl"


LINES = ["a/otter.safetensors", "a\\otter", "OTTER", "otter: 0.7", "a/otter.safetensors:-.5e1", "otters", "fox", "ott"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_pinned_for_the_card_where_it_is_for_the_node(tmp_path, line):
    name, entries = "a/otter.safetensors", [Entry("a/otter.safetensors"), Entry("fox.safetensors")]
    try:
        taken = [entries[lora].name for lora, _ in read_wishes(entries, entries, "sdxl", [line], [], 1.0)[0]]
    except SelectionError:  # the node knows no such LoRA
        taken = []
    script = "return [it.isListed(given[0], given[1]), it.listed(given[0], given[1], false)];"
    pinned, rest = said_by(tmp_path, "cards/choices.js", script, [line, name])
    assert pinned == (taken == [name]) and (rest == "") == pinned


def test_a_ban_in_full_leaves_others_of_that_name(tmp_path):
    names = ["a/otter.safetensors", "b/otter.safetensors", "fox.safetensors"]
    entries = [Entry(name) for name in names]
    line = said_by(tmp_path, "cards/choices.js", "return it.listed('', given, true);", names[1])
    for pattern, shut in (
        (line, [0, 1, 0]),
        ("B\\Otter.safetensors", [0, 1, 0]),
        ("otter", [1, 1, 0]),
        ("*/ott*", [1, 1, 0]),
    ):
        assert read_wishes(entries, entries, "sdxl", [], [pattern], 1.0)[1].tolist() == shut, pattern
    assert not read_wishes([], [], "sdxl", [], [line], 1.0)[1].size


PIN = """
const node = { type: "AutoLoRARetrieve", title: "Mine", inputs: [{ widget: { name: "pinned" }, link: given.link }] };
node.widgets = ["pinned", "banned"].map((name) => ({ name, value: given[name] }));
const said = it.pin({ graph: { nodes: [node] } }, "a/otter.safetensors");
return [said, ...node.widgets.map((widget) => widget.value)];
"""


@pytest.mark.parametrize(
    ("given", "said", "pinned", "banned"),
    [
        ({"pinned": "fox\n", "banned": "Otter\nfox"}, "Pinned in “Mine”.", "fox\na/otter.safetensors", "fox"),
        ({"pinned": "a\\otter: 0.5", "banned": ""}, "It is pinned there already.", "a\\otter: 0.5", ""),
        ({"pinned": "", "banned": "", "link": 3}, "Its field pinned is connected to another node", "", ""),
    ],
)
def test_the_panel_pins_as_the_cards_do(tmp_path, given, said, pinned, banned):
    told, *fields = said_by(tmp_path, "panel/actions.js", PIN, {"link": None, **given})
    assert told.startswith(said) and fields == [pinned, banned]
